#!/usr/bin/env bash
# Compare routes A, B, C, D and R on a task with drawn images, from the same ImageNet weights.
#   scripts/compare_routes.sh TASK [SEEDS]      for instance: scripts/compare_routes.sh shapes_det "0 1 2"
#   A    trains a supernet on the task with IMAGES images, then searches it
#   B    trains a supernet on classification with IMAGES images, then searches it; its archs become backbones
#   C    searches without a supernet, and trains the subnets of trials on the task with IMAGES images in total
#   C0   ranks subnets of the public network by their damage, without any training
#   C10  uses a tenth of IMAGES to warm up neck and head, and scores trials without training
#   D    trains the whole network on the task with IMAGES images; its front is this network at each input size, without a search
#   R    trains the whole network like D, but without the search split, and searches its subnets, which are repaired
#   R10  R with a tenth of IMAGES for the whole network
#   R10d R10, but subnets are ranked by their estimated damage, and only those of the front are repaired
#   Aown the same as A, but its networks are then trained from the weights of its supernet
#   Abody, Cbody, C10body   the same with task.build.genes=null: input, neck and head keep their largest sizes
# NETS networks of each front are then trained with the same settings on all of train, and scored on the validation split: those of
# D, R, R10 and R10d from the weights of their whole network, those of Aown from its supernet, all others from the weights of ImageNet,
# repaired.
# SLICES=1 starts those last ones from mere slices instead.
# The last step prints the table of compare_routes.py. All runs are in runs/compare-TASK. If the script is interrupted, the
# same command resumes it.
# Environment: ROUTES="A B C C0 D" IMAGES=1600 BATCH=8 TRIALS=40 NETS=5 RETRAIN_STEPS=150 PYTHON=python. BATCH is the batch
# size of the task, 32 for shapes_pose; with another number, IMAGES is not what the routes see.
set -euo pipefail
TASK=${1:?"give a task: shapes_cls, shapes_det, shapes_insseg, shapes_pose or shapes_seg"}
SEEDS=${2:-"0 1 2"}
ROUTES=${ROUTES:-"A B C C0 D"}
IMAGES=${IMAGES:-1600}
TRIALS=${TRIALS:-40}
NETS=${NETS:-5}
RETRAIN_STEPS=${RETRAIN_STEPS:-150}
PYTHON=${PYTHON:-python}
RUNS=runs/compare-$TASK
here=$(dirname "$0")
batch=${BATCH:-8}
search=(search.ask_batch=10 search.trials_per_job=10 search.sampler.num_random=10)

run() { "$PYTHON" -m nas_transfer runs="$RUNS" "$@" </dev/null; }

for seed in $SEEDS; do
    for route in $ROUTES; do
        name=$route-$seed
        seeded=(experiment="compare_$TASK" seed="$seed")
        of_route=("${seeded[@]}" name="$name")
        [[ $route == *body ]] && of_route+=(task.build.genes=null)
        retrained=("${seeded[@]}")
        case ${route%body} in
            A | Aown)
                found=$RUNS/search/$TASK/$name
                [[ $route == Aown ]] && retrained+=(weights="$RUNS/finetune/$TASK/$name" task.sampling.distillation=0)
                run "${of_route[@]}" stage=finetune arch=supernet trainer.max_steps=$((IMAGES / batch))
                run "${of_route[@]}" "${search[@]}" stage=search weights="$RUNS/finetune/$TASK/$name" search.trials="$TRIALS"
                ;;
            B)
                found=$RUNS/search/shapes_cls/$name
                classify=(task=shapes_cls supernet=efficientnet_lite0 seed="$seed" name="$name" calibration_images=100
                    trainer.enable_progress_bar=false data.image_size=128 data.batch_size=16)
                run "${classify[@]}" stage=pretrain arch=supernet weights=efficientnet_lite0 \
                    trainer.max_steps=$((IMAGES / 16)) task.recipe.lr=0.001 task.recipe.lr_batch=16
                run "${classify[@]}" "${search[@]}" stage=search weights="$RUNS/pretrain/shapes_cls/$name" \
                    'search.frozen={resolution: 128}' search.trials="$TRIALS"
                ;;
            C)
                found=$RUNS/proxy/$TASK/$name
                run "${of_route[@]}" "${search[@]}" stage=proxy search.trials=1000 \
                    proxy.warmup_steps=$((3 * IMAGES / batch / 10)) 'proxy.rungs=[0,20]' proxy.keep=0.34 \
                    proxy.budget.images="$IMAGES"
                ;;
            C10)
                found=$RUNS/proxy/$TASK/$name
                run "${of_route[@]}" "${search[@]}" stage=proxy search.trials="$TRIALS" \
                    proxy.warmup_steps=$((IMAGES / batch / 10)) 'proxy.rungs=[0]'
                ;;
            C0)
                found=$RUNS/search/$TASK/$name
                run "${of_route[@]}" "${search[@]}" stage=search 'objective=[damage,macs]' search.trials=200
                ;;
            D)
                found=$RUNS/finetune/$TASK/$name
                run "${of_route[@]}" stage=finetune arch=max trainer.max_steps=$((IMAGES / batch))
                retrained+=(weights="$found" task.sampling.distillation=0)
                ;;
            R | R10 | R10d)
                steps=$((IMAGES / batch)) objective=('objective=[score,macs]')
                [[ $route == R10* ]] && steps=$((steps / 10))
                [[ $route == R10d ]] && objective=('objective=[damage,macs]')
                found=$RUNS/search/$TASK/$name
                whole=$RUNS/finetune/$TASK/$name
                run "${of_route[@]}" stage=finetune arch=max data.split.hold_out_search=true trainer.max_steps=$steps
                run "${of_route[@]}" "${search[@]}" stage=search weights="$whole" search.trials="$TRIALS" "${objective[@]}"
                retrained+=(weights="$whole" task.sampling.distillation=0)
                ;;
            *)
                echo "ROUTES must name A, Aown, B, C, C0, C10, D, R, R10, R10d, Abody, Cbody or C10body, got $route" >&2
                exit 2
                ;;
        esac
        [[ -z ${SLICES:-} || ${retrained[*]} == *weights=* ]] || retrained+=(repair_views=null)
        listed=(choose "$found" "$NETS")
        [[ $route == D ]] && listed=(sizes "$found")
        index=0
        # The genes of the task stay, so that an arch of the body alone means the largest sizes.
        for arch in $("$PYTHON" "$here/compare_routes.py" "${listed[@]}"); do
            run "${retrained[@]}" stage=finetune arch="$arch" trainer.max_steps="$RETRAIN_STEPS" name="$name-$index"
            index=$((index + 1))
        done
    done
done
"$PYTHON" "$here/compare_routes.py" table "$RUNS" "$TASK"
