#!/usr/bin/env bash
# Split MNIST in the three scenarios, five seeds. Interrupted or killed, it goes on when typed again.
#   scripts/benchmark_split_mnist.sh            MNIST, from $CLRUN_DATA_DIR or downloaded: hours on a CPU
#   scripts/benchmark_split_mnist.sh --quick    scikit-learn's digits instead, two seeds: a minute
set -euo pipefail
stream=(+experiment=split_mnist 'seed=range(2,7)') ewc=1e5 outputs=outputs/split_mnist
case "${1:-}" in
  "") ;;
  --quick) stream=(dataset=digits epochs=5 'seed=0,1') ewc=400 outputs=outputs/split_digits ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
clrun -m "${stream[@]}" scenario=task,domain,class strategy=finetune,joint,lwf,si,er outputs="$outputs"
clrun -m "${stream[@]}" scenario=task,domain,class strategy=ewc lambda="$ewc" outputs="$outputs"
clrun-report "$outputs"
