#!/usr/bin/env bash
# Measure what ranks the repaired subnets of one whole network on a task with drawn images, before they are trained.
#   scripts/rank_repair.sh TASK [SEEDS]      for instance: scripts/rank_repair.sh shapes_seg "0 1 2"
# For each seed, the whole network is trained on the task with IMAGES images, as by route R of compare_routes.sh. The damages
# of its choices are measured, and ARCHS subnets, spread over costs, are scored as repaired, after EARLY and after LONG steps.
# The last step prints the tables of rank_repair.py. All runs are in runs/compare-TASK. If the script is interrupted, the
# same command resumes it.
# Environment: IMAGES=1600 BATCH=8 ARCHS=16 EARLY=20 LONG=150 PYTHON=python. BATCH is the batch size of the task.
set -euo pipefail
TASK=${1:?"give a task: shapes_cls, shapes_det, shapes_insseg, shapes_pose or shapes_seg"}
SEEDS=${2:-"0 1 2"}
ARCHS=${ARCHS:-16}
PYTHON=${PYTHON:-python}
RUNS=runs/compare-$TASK
run() { "$PYTHON" -m nas_transfer runs="$RUNS" experiment="compare_$TASK" "$@" </dev/null; }

ranked=()
for seed in $SEEDS; do
    whole=$RUNS/finetune/$TASK/R-$seed
    run seed="$seed" name="R-$seed" stage=finetune arch=max data.split.hold_out_search=true \
        trainer.max_steps=$((${IMAGES:-1600} / ${BATCH:-8}))
    run seed="$seed" name="rank-$seed" stage=proxy weights="$whole" "proxy.rungs=[0,${EARLY:-20},${LONG:-150}]" proxy.keep=1 \
        search.trials="$ARCHS" search.ask_batch="$ARCHS" search.trials_per_job="$ARCHS" \
        search.sampler.num_random="$ARCHS" search.sampler.damage=true
    ranked+=("$RUNS/proxy/$TASK/rank-$seed")
done
"$PYTHON" "$(dirname "$0")/rank_repair.py" "${ranked[@]}"
