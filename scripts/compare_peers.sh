#!/usr/bin/env bash
# Compare repaired subnets of one trained classifier with structural pruning and with smaller images, at equal multiply-accumulates.
#   scripts/compare_peers.sh NETS SEEDS SHARES [key=value ...]
#   for instance: scripts/compare_peers.sh "efficientnet_lite0 efficientnet_lite1" "0 1 2" "0.5 0.35 0.25" data.root=flowers5 \
#     data.image_size=128 supernet.resolutions=[48,64,80,96,112,128]
# For each net, whose weights are an installed package, and each seed:
#   S          trains the whole network, with the search split held out
#   R          searches its subnets, repaired and untrained, from half of the smallest share to the largest one; they are scored
#              on the images that were held out of S, or with SEARCH_FRACTION=1 on all of train
#   ours       the best subnet of the front within each share of the whole network's multiply-accumulates
#   resized    the whole network on the largest images within it, of the SIZES
#   magnitude  Torch-Pruning (DepGraph), L2 magnitude of groups, the same share of each layer; BatchNorms recalibrated
#   taylor     the same with first-order Taylor importance, from gradients of four batches, all layers ranked together
#   fastnas    NVIDIA ModelOpt's FastNAS, by the loss on the search split; BatchNorms recalibrated
# All but S and R are then trained for STEPS steps: the same images, the same imitation of the whole network. Networks that compute
# something keep their BatchNorm statistics at the rate RATE (ours, resized); pruned ones renew them at PEER_RATE.
# The last step prints the table. All runs are in RUNS. If the script is interrupted, the same command resumes it.
# The other tools are installed into an environment of their own, $RUNS/peers, unless PEERS names its Python.
# Environment: SEARCH_FRACTION= TRIALS=40 STEPS=100 RATE=0.0001 PEER_RATE=0.001 METHODS="magnitude taylor fastnas"
#   SIZES="40 44 48 ... 128" RUNS=runs/compare-peers PYTHON=python PEERS=.
set -euo pipefail
NETS=${1:?"give nets, such as \"efficientnet_lite0 efficientnet_lite1\""}
SEEDS=${2:?"give seeds, such as \"0 1 2\""}
SHARES=${3:?"give shares of multiply-accumulates, such as \"0.5 0.35\""}
shift 3
SEARCH_FRACTION=${SEARCH_FRACTION:-}
TRIALS=${TRIALS:-40}
STEPS=${STEPS:-100}
RATE=${RATE:-0.0001}
PEER_RATE=${PEER_RATE:-0.001}
METHODS=${METHODS:-magnitude taylor fastnas}
SIZES=${SIZES:-$(seq -s " " 40 4 128)}
RUNS=${RUNS:-runs/compare-peers}
PYTHON=${PYTHON:-python}
PEERS=${PEERS:-}
here=$(dirname "$0")
given=(data.split.hold_out_search=true trainer.enable_progress_bar=false sample_predictions=0 "$@")
scored=()
[[ $SEARCH_FRACTION != 1 ]] || scored=(data.split.search_fraction=1 data.split.hold_out_search=false)
alike=(trainer.max_steps="$STEPS" scoring.every=null)

if [[ -z $PEERS ]]; then
    PEERS=$RUNS/peers/bin/python
    if [[ ! -x $PEERS ]]; then
        "$PYTHON" -m venv "$RUNS/peers"
        "$PEERS" -m pip install "$here/..[weights,timm]" torch-pruning nvidia-modelopt torchprofile==0.0.4
    fi
fi
run() { "$PYTHON" -m nas_transfer runs="$RUNS" task=small_cls supernet="$net" seed="$seed" "${given[@]}" "$@" </dev/null; }

for net in $NETS; do
    for seed in $SEEDS; do
        whole=$RUNS/finetune/small_cls/$net-S-$seed
        search=$RUNS/search/small_cls/$net-R-$seed
        run stage=finetune weights="$net" name="$net-S-$seed"
        range=$("$PYTHON" "$here/compare_peers.py" range "$RUNS" "$net" "$seed" $SHARES)
        run stage=search weights="$whole" "${scored[@]}" search.constraints="$range" search.trials="$TRIALS" \
            search.ask_batch=8 search.sampler.num_random=8 name="$net-R-$seed"
        for share in $SHARES; do
            "$PYTHON" "$here/compare_peers.py" choose "$RUNS" "$net" "$seed" "$share" $SIZES
            for method in ours resized; do
                sizes=()
                [[ $method == ours ]] || sizes=("supernet.resolutions=[${SIZES// /,}]")
                run stage=finetune weights="$whole" arch="$search/archs/$method-$share.yaml" "${alike[@]}" "${sizes[@]}" \
                    task.recipe.lr="$RATE" name="$net-$method-$seed-$share"
            done
            for method in $METHODS; do
                "$PEERS" "$here/compare_peers.py" prune "$RUNS" "$net" "$seed" "$method" "$share" "${given[@]}" "${alike[@]}" \
                    task.recipe.lr="$PEER_RATE"
            done
        done
    done
done
"$PYTHON" "$here/compare_peers.py" table "$RUNS"
