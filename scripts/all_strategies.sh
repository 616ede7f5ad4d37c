#!/usr/bin/env bash
# Every strategy with its own defaults on digits, five seeds; those that must be told the task at test only where it is told.
# Interrupted or killed, it goes on when typed again.
#   scripts/all_strategies.sh            all epochs
#   scripts/all_strategies.sh --quick    two epochs, one seed: a minute
set -euo pipefail
stream=(dataset=digits 'seed=range(5)') outputs=outputs/all_strategies
case "${1:-}" in
  "") ;;
  --quick) stream=(dataset=digits epochs=2) outputs=outputs/all_strategies_quick ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
everywhere=finetune,joint,cumulative,scratch,ewc,si,mas,lwf,imm,er,mir,er_ace,agem,gem,der,derpp,fdr,gdumb,dgr
new_outputs=icarl,wa,bic,generative_classifier  # which tell old outputs from new ones
told=amn,hat,packnet,separate
everywhere+=,ncm,slda,fecam,ranpac  # heads in closed form, without gradients
everywhere+=,l2_init,shrink_perturb,upgd,cbp  # against the loss of plasticity
everywhere+=,rwalk  # penalties on the weights, merging of weights
told+=,xdg  # parts of the network per task
everywhere+=,gpm  # projection of steps
clrun -m "${stream[@]}" scenario=task strategy=$everywhere,$new_outputs,$told outputs="$outputs"
clrun -m "${stream[@]}" scenario=domain,class strategy=$everywhere outputs="$outputs"
clrun -m "${stream[@]}" scenario=class strategy=$new_outputs outputs="$outputs"
clrun-report "$outputs"
