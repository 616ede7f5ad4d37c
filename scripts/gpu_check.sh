#!/usr/bin/env bash
# What must be tried on a GPU, in parts of at most ten minutes: docs/development/card.md.
#   scripts/gpu_check.sh --list                   the parts, in order
#   scripts/gpu_check.sh prepare                  with a network: wheels and MNIST into $KIT
#   scripts/gpu_check.sh PART [FOLDER]            one part; its log and its files go to FOLDER/PART
#   DEVICE=cpu scripts/gpu_check.sh PART          a rehearsal on the CPU, with small sizes
# FOLDER: $OUT, or outputs/gpu_check. KIT: build/gpu_kit. PYTHON: a Python that has torch. LIMIT: seconds a part.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
KIT="${KIT:-$here/build/gpu_kit}" PYTHON="${PYTHON:-python3}" DEVICE="${DEVICE:-cuda}" LIMIT="${LIMIT:-590}"
parts=(environment cuda-tests suite-engine suite-strategies suite-runs suite-commands suite-rest single stacks sweep resnet profile)
suite() { for one in "$@"; do printf '%s ' "tests/$one"; done; }

python() { "$PYTHON" "$@"; }
pytest() { "$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= -m "${MARK:-not slow and not cuda}" --device "$DEVICE" "$@"; }
bench() { "$PYTHON" scripts/bench.py --card --device "$DEVICE" --csv "$folder/performance.csv" --only "$1" "${small[@]}"; }

case "${1:-}" in
  --list) printf '%s\n' "${parts[@]}"; exit ;;
  prepare)
    mkdir -p "$KIT/wheels" "$KIT/data"
    "$PYTHON" -m pip wheel -q --wheel-dir "$KIT/wheels" 'hydra-core>=1.3.8,<1.5' 'omegaconf>=2.3' antlr4-python3-runtime==4.9.* \
      'pydantic>=2.11' 'filelock>=3.16' 'hypothesis>=6' 'pytest>=8'
    cp -r "${CLRUN_DATA_DIR:-$HOME/.cache/clrun}/MNIST" "$KIT/data/"
    exit ;;
esac
part="${1:-}"
[[ " ${parts[*]} " == *" $part "* ]] || { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
folder="${2:-${OUT:-$here/outputs/gpu_check}}/$part"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
cd "$here"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" CLRUN_DATA_DIR="${CLRUN_DATA_DIR:-$KIT/data}" MPLCONFIGDIR="${MPLCONFIGDIR:-$folder}"
if ! "$PYTHON" -c 'import hydra, pydantic, filelock, hypothesis, pytest' 2>/dev/null; then
  site="${TMPDIR:-/tmp}/clrun-gpu-site"
  "$PYTHON" -m pip install -q --no-index --no-deps --upgrade --find-links "$KIT/wheels" --target "$site" "$KIT"/wheels/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
small=()
[ "$DEVICE" = cuda ] || small=(--quick --rounds 1)

run() {
  case "$part" in
    environment) python scripts/gpu/environment.py ;;
    cuda-tests) MARK=cuda pytest tests/engine/test_cuda.py --junitxml "$folder/tests.xml" ;;
    suite-engine) pytest $(suite engine models data test_optimizers.py) --junitxml "$folder/tests.xml" ;;
    suite-strategies) pytest $(suite strategies) --junitxml "$folder/tests.xml" ;;
    suite-runs) pytest $(suite runs sweep) --junitxml "$folder/tests.xml" ;;
    suite-commands) pytest $(suite commands config) --junitxml "$folder/tests.xml" ;;
    suite-rest) pytest $(suite results system terminal report) --junitxml "$folder/tests.xml" ;;
    single) bench W1,W1-100,W2,W3 ;;
    stacks) bench stack ;;
    sweep) bench sweep ;;
    resnet) bench resnet ;;
    profile) python scripts/gpu/profile_step.py --device "$DEVICE" --out "$folder" "${small[@]:0:1}" ;;
  esac
}
code=0
# Not `timeout run`, as timeout starts commands and not functions: the part is a process group of its own.
set -m
run > "$folder/log.txt" 2>&1 &
group=$!
set +m
( sleep "$LIMIT"; kill -TERM -- "-$group" 2>/dev/null ) & watch=$!
wait "$group" || code=$?
kill "$watch" 2>/dev/null || true
echo "$code" > "$folder/exit_code.txt"
tail -n 15 "$folder/log.txt"
echo "$part ended with $code: $folder"
exit "$code"
