#!/usr/bin/env bash
# Compare routes A, B and C on an embedded task, from the same ImageNet weights and for the same number of training images.
#   scripts/compare_routes.sh TASK [SEEDS]      for instance: scripts/compare_routes.sh shapes_det "0 1 2"
#   A    trains a supernet on the task with IMAGES images, then searches it
#   B    trains a supernet on classification with IMAGES images, then searches it; its archs become backbones
#   C    searches without a supernet, and trains the subnets of trials on the task with IMAGES images in total
#   C10  uses a tenth of IMAGES to warm up neck and head, and scores trials without training
# NETS networks of each front are then trained with the same settings on all of train, and scored on the validation split.
# The last step prints the table of compare_routes.py. All runs are in runs/compare-TASK. If the script is interrupted, the
# same command resumes it. Environment: IMAGES=1600 TRIALS=40 NETS=5 RETRAIN_STEPS=150 PYTHON=python.
set -euo pipefail
TASK=${1:?"give a task: shapes_det, shapes_insseg, shapes_pose or shapes_seg"}
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
    seeded=("${common[@]}" seed="$seed")
    batch=8

    run "${seeded[@]}" stage=finetune arch=supernet trainer.max_steps=$((IMAGES / batch)) name="A-$seed"
    run "${seeded[@]}" stage=search weights="$RUNS/finetune/$TASK/A-$seed" "${search[@]}" name="A-$seed"

    classify=(task=shapes_cls supernet=efficientnet_lite0 seed="$seed" calibration_images=100 trainer.enable_progress_bar=false
        data.image_size=128 data.batch_size=16)
    run "${classify[@]}" stage=pretrain arch=supernet weights=efficientnet_lite0 trainer.max_steps=$((IMAGES / 16)) \
        task.recipe.lr=0.001 task.recipe.lr_batch=16 name="B-$seed"
    run "${classify[@]}" stage=search weights="$RUNS/pretrain/shapes_cls/B-$seed" 'search.frozen={resolution: 128}' \
        "${search[@]}" name="B-$seed"

    proxy=("${seeded[@]}" stage=proxy search.ask_batch=10 search.trials_per_job=10 search.sampler.num_random=10)
    run "${proxy[@]}" search.trials=1000 proxy.warmup_steps=$((3 * IMAGES / batch / 10)) 'proxy.rungs=[0,20]' proxy.keep=0.34 \
        proxy.budget.images="$IMAGES" name="C-$seed"
    run "${proxy[@]}" search.trials="$TRIALS" proxy.warmup_steps=$((IMAGES / batch / 10)) 'proxy.rungs=[0]' name="C10-$seed"

    for route in "A search/$TASK" "B search/shapes_cls" "C proxy/$TASK" "C10 proxy/$TASK"; do
        read -r name folder <<<"$route"
        index=0
        "$PYTHON" "$here/compare_routes.py" choose "$RUNS/$folder/$name-$seed" "$NETS" | while read -r arch; do
            run "${seeded[@]}" stage=finetune arch="$arch" trainer.max_steps="$RETRAIN_STEPS" \
                name="$name-$seed-$index" </dev/null
            index=$((index + 1))
        done
    done
done
"$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK"
