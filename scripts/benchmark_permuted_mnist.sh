#!/usr/bin/env bash
# Ten permutations of MNIST, domain-incremental, five seeds. Interrupted or killed, it goes on when typed again.
#   scripts/benchmark_permuted_mnist.sh            MNIST, from $CLRUN_DATA_DIR or downloaded: hours on a CPU
#   scripts/benchmark_permuted_mnist.sh --quick    scikit-learn's digits instead, two seeds: a minute
set -euo pipefail
stream=(+experiment=permuted_mnist 'seed=range(2,7)') ewc=100 outputs=outputs/permuted_mnist
case "${1:-}" in
  "") ;;
  --quick) stream=(dataset=digits split=permuted scenario=domain tasks=5 epochs=5 'seed=0,1') ewc=400 outputs=outputs/permuted_digits ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
clrun -m "${stream[@]}" strategy=finetune,joint,lwf,si,er outputs="$outputs"
clrun -m "${stream[@]}" strategy=ewc lambda="$ewc" outputs="$outputs"
clrun-report "$outputs"
