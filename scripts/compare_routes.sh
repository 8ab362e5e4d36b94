#!/usr/bin/env bash
# Routes A, B and C on one embedded task, from the same ImageNet weights: which networks does each find, for how many images?
#   scripts/compare_routes.sh TASK [SEEDS]      for instance: scripts/compare_routes.sh shapes_det "0 1 2"
# Each route's front is thinned to five nets, which are all trained alike on all of train and scored on the validation split.
#   A    a supernet is trained on the task (IMAGES images), then searched
#   B    a supernet is trained on classification (IMAGES images), then searched; its nets become backbones
#   C    candidates are trained on the task until IMAGES images were seen
#   C10  the same with a tenth of IMAGES: neck and head are warmed up, candidates are scored without training
# Everything lies in runs/compare-TASK. Stopped, the same command goes on. Ends with the table; see compare_routes.py.
set -euo pipefail
TASK=${1:?"expected a task: shapes_det, shapes_insseg, shapes_pose or shapes_seg"}
SEEDS=${2:-"0 1 2"}
IMAGES=${IMAGES:-1600}
TRIALS=${TRIALS:-40}
NETS=${NETS:-5}
RETRAIN_STEPS=${RETRAIN_STEPS:-150}
PYTHON=${PYTHON:-python}
RUNS=runs/compare-$TASK
here=$(dirname "$0")

run() { "$PYTHON" -m nas_transfer runs="$RUNS" "$@"; }
common=(experiment="compare_$TASK")
search=(search.trials="$TRIALS" search.ask_batch=10 search.trials_per_job=10 search.sampler.num_random=10)

for seed in $SEEDS; do
    own=("${common[@]}" seed="$seed")
    batch=8

    run "${own[@]}" stage=finetune arch=supernet trainer.max_steps=$((IMAGES / batch)) name="A-$seed"
    run "${own[@]}" stage=search weights="$RUNS/finetune/$TASK/A-$seed" "${search[@]}" name="A-$seed"

    classify=(task=shapes_cls supernet=efficientnet_lite0 seed="$seed" calibration_images=100 trainer.enable_progress_bar=false
        data.image_size=128 data.batch_size=16)
    run "${classify[@]}" stage=pretrain arch=supernet weights=efficientnet_lite0 trainer.max_steps=$((IMAGES / 16)) \
        task.recipe.lr=0.001 task.recipe.lr_batch=16 name="B-$seed"
    run "${classify[@]}" stage=search weights="$RUNS/pretrain/shapes_cls/B-$seed" 'search.frozen={resolution: 128}' \
        "${search[@]}" name="B-$seed"

    proxy=("${own[@]}" stage=proxy search.ask_batch=10 search.trials_per_job=10 search.sampler.num_random=10)
    run "${proxy[@]}" search.trials=1000 proxy.warmup_steps=$((3 * IMAGES / batch / 10)) 'proxy.rungs=[0,20]' proxy.keep=0.34 \
        proxy.budget.images="$IMAGES" name="C-$seed"
    run "${proxy[@]}" search.trials="$TRIALS" proxy.warmup_steps=$((IMAGES / batch / 10)) 'proxy.rungs=[0]' name="C10-$seed"

    for route in "A search/$TASK" "B search/shapes_cls" "C proxy/$TASK" "C10 proxy/$TASK"; do
        read -r letters folder <<<"$route"
        place=0
        "$PYTHON" "$here/compare_routes.py" choose "$RUNS/$folder/$letters-$seed" "$NETS" | while read -r arch; do
            run "${own[@]}" stage=finetune arch="$arch" trainer.max_steps="$RETRAIN_STEPS" \
                name="$letters-$seed-$place" </dev/null
            place=$((place + 1))
        done
    done
done
"$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK"
