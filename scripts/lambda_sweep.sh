#!/usr/bin/env bash
# EWC's lambda over powers of ten between its two bounds, five seeds; choose by validation_accuracy, never by the test's.
# Interrupted or killed, it goes on when typed again; with more values it trains only what is new.
#   scripts/lambda_sweep.sh            scikit-learn's digits with all their epochs
#   scripts/lambda_sweep.sh --quick    fewer epochs and seeds: a minute
set -euo pipefail
stream=(dataset=digits validation=0.1 'seed=range(5)') outputs=outputs/lambda_sweep
case "${1:-}" in
  "") ;;
  --quick) stream=(dataset=digits validation=0.1 epochs=5 'seed=0,1') outputs=outputs/lambda_quick ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
clrun -m "${stream[@]}" strategy=finetune,ewc,joint 'lambda=1,10,100,1e3,1e4,1e5,1e6' outputs="$outputs"
clrun-report "$outputs" --sort validation_accuracy
