#!/usr/bin/env bash
# Compare searches of the whole network with searches of its body alone, on an embedded task, for the same number of images.
#   scripts/compare_genes.sh TASK [SEEDS]       for instance: scripts/compare_genes.sh shapes_det "0 1 2"
#   A, C          routes A and C, with the genes of the task
#   Abody, Cbody  the same with task.build.genes=null: input, neck and head keep their largest sizes
# NETS networks of each front are then trained with the same settings on all of train, and scored on the validation split.
# The last step prints the table of compare_routes.py, which measures all hypervolumes from the largest network. All runs are
# in runs/compare-genes-TASK. If the script is interrupted, the same command resumes it.
# Environment: IMAGES=1600 TRIALS=40 NETS=5 RETRAIN_STEPS=150 ROUTES="A Abody C Cbody" PYTHON=python.
set -euo pipefail
TASK=${1:?"give a task: shapes_det, shapes_insseg, shapes_pose or shapes_seg"}
SEEDS=${2:-"0 1 2"}
IMAGES=${IMAGES:-1600}
TRIALS=${TRIALS:-40}
NETS=${NETS:-5}
RETRAIN_STEPS=${RETRAIN_STEPS:-150}
ROUTES=${ROUTES:-"A Abody C Cbody"}
PYTHON=${PYTHON:-python}
RUNS=runs/compare-genes-$TASK
here=$(dirname "$0")
batch=8

run() { "$PYTHON" -m nas_transfer runs="$RUNS" "$@"; }

for seed in $SEEDS; do
    for route in $ROUTES; do
        common=(experiment="compare_$TASK" seed="$seed")
        [[ $route == *body ]] && common+=(task.build.genes=null)
        search=("${common[@]}" search.ask_batch=10 search.trials_per_job=10 search.sampler.num_random=10 name="$route-$seed")
        if [[ $route == A* ]]; then
            stage=search
            run "${common[@]}" stage=finetune arch=supernet trainer.max_steps=$((IMAGES / batch)) name="$route-$seed"
            run "${search[@]}" stage=search weights="$RUNS/finetune/$TASK/$route-$seed" search.trials="$TRIALS"
        else
            stage=proxy
            run "${search[@]}" stage=proxy search.trials=1000 proxy.warmup_steps=$((3 * IMAGES / batch / 10)) \
                'proxy.rungs=[0,20]' proxy.keep=0.34 proxy.budget.images="$IMAGES"
        fi
        index=0
        "$PYTHON" "$here/compare_routes.py" choose "$RUNS/$stage/$TASK/$route-$seed" "$NETS" | while read -r arch; do
            # The genes of the task stay, so that an arch of the body alone means the largest sizes.
            run experiment="compare_$TASK" seed="$seed" stage=finetune arch="$arch" trainer.max_steps="$RETRAIN_STEPS" \
                name="$route-$seed-$index" </dev/null
            index=$((index + 1))
        done
    done
done
"$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK"
