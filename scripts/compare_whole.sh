#!/usr/bin/env bash
# Compare the repaired subnets of one trained network with what one would change by hand: its images or its head.
#   scripts/compare_whole.sh TASK SEEDS [key=value ...]
#   for instance: scripts/compare_whole.sh small_det "0 1 2" data.root=mine task.recipe.lr_batch=4
#   S    trains the whole network, with the search split held out, and scores it at each input size of the task and with
#        narrower heads
#   R    searches its subnets, repaired and untrained, and scores NETS networks of the front
# Both are then trained alike for STEPS steps at the rate RATE, imitating the whole network with the share of
# task.sampling.distillation. The last steps print two tables of compare_routes.py, before and after this training. R needs
# the training of S too. All runs are in runs/compare-whole-TASK. If the script is interrupted, the same command resumes it.
# Environment: TRIALS=40 NETS=6 STEPS=100 RATE=0.00003 PYTHON=python.
set -euo pipefail
TASK=${1:?"give a task, such as small_det"}
SEEDS=${2:?"give seeds, such as \"0 1 2\""}
shift 2
TRIALS=${TRIALS:-40}
NETS=${NETS:-6}
STEPS=${STEPS:-100}
RATE=${RATE:-0.00003}
PYTHON=${PYTHON:-python}
RUNS=runs/compare-whole-$TASK
here=$(dirname "$0")

run() { "$PYTHON" -m nas_transfer runs="$RUNS" task="$TASK" data.split.hold_out_search=true "${given[@]}" "$@" </dev/null; }
given=("$@" trainer.enable_progress_bar=false sample_predictions=0)

for seed in $SEEDS; do
    whole=$RUNS/finetune/$TASK/S-$seed
    run seed="$seed" stage=finetune name="S-$seed"
    run seed="$seed" stage=search weights="$whole" search.trials="$TRIALS" search.ask_batch=8 search.sampler.num_random=8 \
        name="R-$seed"
    for route in S R; do
        choice=(choose "$RUNS/search/$TASK/R-$seed" "$NETS")
        if [[ $route == S ]]; then choice=(baselines "$RUNS/search/$TASK/R-$seed"); fi
        index=0
        for arch in $("$PYTHON" "$here/compare_routes.py" "${choice[@]}"); do
            scored=(weights="$whole" arch="$arch")
            [[ $route == S ]] || scored=(weights="${arch%/archs/*}/networks/$(basename "$arch" .yaml)")
            run seed="$seed" stage=evaluate "${scored[@]}" name="$route-$seed-$index"
            if [[ $STEPS != 0 ]]; then
                run seed="$seed" stage=finetune weights="$whole" arch="$arch" name="$route-$seed-$index" \
                    trainer.max_steps="$STEPS" scoring.every=null task.recipe.lr="$RATE"
            fi
            index=$((index + 1))
        done
    done
done
"$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK" --stage evaluate
[[ $STEPS == 0 ]] || "$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK"
