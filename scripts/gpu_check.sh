#!/usr/bin/env bash
# What must be tried on a GPU, in parts of at most ten minutes: docs/development/card.md.
#   scripts/gpu_check.sh --list                   the parts, in order
#   scripts/gpu_check.sh prepare                  with a network: wheels and MNIST into $KIT
#   scripts/gpu_check.sh PART [FOLDER]            one part; its log and its files go to FOLDER/PART
#   DEVICE=cpu scripts/gpu_check.sh PART          a rehearsal on the CPU, with small sizes
# FOLDER: $OUT, or outputs/gpu_check. KIT: build/gpu_kit. PYTHON: a Python that has torch. LIMIT: seconds a part.
# JOBS: processes of the tests, 8, where pytest-xdist is installed.
# Left out on purpose: tests/loggers, tests/project and tests/tune, which compute nothing on a card that others do not,
# and all tests marked slow, which would take longer than a part may.
# For prepare: TARGET_PYTHON, such as 3.12, and TARGET_MACHINE, such as x86_64, of the machine with the card.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
KIT="${KIT:-$here/build/gpu_kit}" PYTHON="${PYTHON:-python3}" DEVICE="${DEVICE:-cuda}" LIMIT="${LIMIT:-560}"
parts=(environment cuda-tests suite-engine suite-strategies suite-runs suite-commands suite-rest single stacks sweep resnet profile steps)
suite() { for one in "$@"; do printf '%s ' "tests/$one"; done; }

# JOBS processes where pytest-xdist is installed, which the test that fills the card does not share it with.
pytest() { "$PYTHON" -m pytest -v --tb=short -p no:cacheprovider -o addopts= "${jobs[@]}" --device "$DEVICE" --junitxml "$folder/tests.xml" "$@"; }
card() {
  pytest -m cuda -k "not $alone" tests/engine/test_cuda.py || worst=$?
  jobs=()
  pytest -m cuda -k "$alone" --junitxml "$folder/alone.xml" tests/engine/test_cuda.py || worst=$?
  return "${worst:-0}"
}
# The suite takes place on the CPU every day: its rehearsal is whether its tests can be collected. What cannot, as without
# torchvision, keeps the others from nothing.
tests() { pytest --continue-on-collection-errors -m 'not slow and not cuda' "${collect[@]}" $(suite "$@"); }
bench() { "$PYTHON" scripts/bench.py --card --device "$DEVICE" --csv "$folder/performance.csv" --only "$1" "${small[@]}"; }

prepare() {
  local version="${TARGET_PYTHON:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}"
  local machine="${TARGET_MACHINE:-$(uname -m)}" glibc platforms=()
  for glibc in 2014 _2_17 _2_27 _2_28; do platforms+=(--platform "manylinux${glibc}_$machine"); done
  mkdir -p "$KIT/wheels" "$KIT/data"
  rm -f "$KIT"/wheels/*.whl
  # antlr4-python3-runtime is published as source alone; its wheel is for every machine.
  "$PYTHON" -m pip wheel -q --no-deps --wheel-dir "$KIT/wheels" 'antlr4-python3-runtime==4.9.*'
  "$PYTHON" -m pip download -q --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --find-links "$KIT/wheels" --dest "$KIT/wheels" \
    'hydra-core>=1.3.8,<1.5' 'omegaconf>=2.3' 'pydantic>=2.11' 'filelock>=3.16' 'rich>=13' 'hypothesis>=6' 'pytest>=8'
  tar -C "${CLRUN_DATA_DIR:-$HOME/.cache/clrun}" -czf "$KIT/data/MNIST.tar.gz" MNIST/raw
  echo "Carry $KIT ($(du -sh "$KIT" | cut -f1)) along with this checkout, to build/gpu_kit in it or to where KIT says."
  echo "It is for Python $version on $machine, which must have the rest: torch, numpy, pandas, scipy, matplotlib,"
  echo "safetensors, pillow and PyYAML. There: scripts/gpu_check.sh environment"
}

run() {
  case "$part" in
    environment) "$PYTHON" scripts/gpu/environment.py ;;
    cuda-tests) card ;;
    suite-engine) tests engine models data test_optimizers.py ;;
    suite-strategies) tests strategies ;;
    suite-runs) tests runs sweep ;;
    suite-commands) tests commands config ;;
    suite-rest) tests api results system terminal report ;;
    single) bench W1,W1-100,W2,W3,W5 ;;
    stacks) bench stack ;;
    sweep) bench sweep ;;
    resnet) bench resnet ;;
    steps) "$PYTHON" scripts/gpu/step_times.py --device "$DEVICE" --out "$folder" "${small[@]:0:1}" ;;
    profile) "$PYTHON" scripts/gpu/profile_step.py --device "$DEVICE" --out "$folder" "${small[@]:0:1}" ;;
  esac
}

case "${1:-}" in
  --list) printf '%s\n' "${parts[@]}"; exit ;;
  prepare) prepare; exit ;;
esac
part="${1:-}"
[[ " ${parts[*]} " == *" $part "* ]] || { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
folder="${2:-${OUT:-$here/outputs/gpu_check}}/$part"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
cd "$here"
small=() collect=() jobs=() alone=too_large
[ "$DEVICE" = cuda ] || small=(--quick --rounds 1) collect=(--collect-only)

"$PYTHON" -c 'import xdist' 2> /dev/null && jobs=(-n "${JOBS:-8}" --dist worksteal)

if [ -z "${GPU_CHECK_READY:-}" ]; then
  # First what this machine lacks, in seconds. Then the part, as a command that `timeout` can end with all it started.
  unpacked="${TMPDIR:-/tmp}/clrun-gpu-$(id -u)"
  export PYTHONPATH="$here:$unpacked/site${PYTHONPATH:+:$PYTHONPATH}"
  "$PYTHON" scripts/gpu/ready.py --part "$part" --device "$DEVICE" --kit "$KIT" --unpacked "$unpacked"
  export CLRUN_DATA_DIR="${CLRUN_DATA_DIR:-$unpacked}" MPLCONFIGDIR="${MPLCONFIGDIR:-$unpacked/matplotlib}"
  export GPU_CHECK_READY=1 KIT PYTHON DEVICE
  code=0
  timeout --kill-after=20 "$LIMIT" "$0" "$part" "$(dirname "$folder")" > "$folder/log.txt" 2>&1 &
  running=$!
  trap 'kill -TERM "$running"' INT TERM
  wait "$running" || code=$?
  echo "$code" > "$folder/exit_code.txt"
  tail -n 15 "$folder/log.txt"
  said=""
  [ "$code" -lt 124 ] || said=" (it was ended after $LIMIT seconds or by a signal)"
  echo "$part ended with $code$said: $folder"
  exit "$code"
fi
run
