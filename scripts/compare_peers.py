"""Prune a trained classifier with other tools, train it as our subnets are trained, and print the comparison.

    python scripts/compare_peers.py range RUNS NET SEED SHARE [SHARE ...]
    python scripts/compare_peers.py choose RUNS NET SEED SHARE [SIZE ...]
    python scripts/compare_peers.py prune RUNS NET SEED METHOD SHARE [key=value ...]
    python scripts/compare_peers.py table RUNS

Called by compare_peers.sh, which says what is compared. METHOD is ``magnitude`` or ``taylor`` (Torch-Pruning's DepGraph
with L2 magnitude or first-order Taylor importance of groups, Fang et al. 2023, in steps until the budget is met), or
``fastnas`` (NVIDIA ModelOpt, which scores each choice of each width on the search split; networks of MBConv blocks
without squeeze-and-excitation alone). BatchNorms are recalibrated before the training.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.api.running import composed
from nas_transfer.arch import Arch
from nas_transfer.runs import Result, files, read_front, read_result
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.problem import Problem
from nas_transfer.stages.common.build import (
    build_arch,
    build_bare_trainer,
    build_blank,
    build_data,
    build_task,
    build_training_settings,
    build_weights,
    set_threads,
)
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import with_trained_groups
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.ops import SamePaddingConv2d
from nas_transfer.tasks.checkpoint import inherit, load_subnet
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.training import TaskModule

STEPS = 400
"""Steps in which the channels are pruned; the first network within the budget is kept."""
GRADIENT_EVERY = 10
"""Steps after which the gradients of the Taylor importance are computed again."""
RANKED_TOGETHER = ("taylor",)
"""Methods that rank the channels of all layers together; the others prune the same share of each layer."""
ROUND_TO = 8
LEAST_OF_BUDGET = 0.5
"""Share of the smallest budget below which the search does not look."""
WIDTH_RATIOS = tuple(tenth / 10 for tenth in range(1, 11))
"""Choices of each width for FastNAS."""
CALIBRATION_BATCHES = 4
"""From which Torch-Pruning takes gradients, and FastNAS the BatchNorm statistics of each network that it scores."""
METHODS = {
    "ours": "nas_transfer, repaired",
    "resized": "whole, smaller images",
    "magnitude": "Torch-Pruning, magnitude",
    "taylor": "Torch-Pruning, Taylor",
    "fastnas": "ModelOpt, FastNAS",
}
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
"""97.5 % quantiles of Student's t by n - 1, for pairs of 2 to 6 seeds."""


def count_macs(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one image, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    return int(counter.get_total_flops()) // 2


def prune_with_depgraph(task: Task, images: Tensor, budget: float, method: str, batches: Iterable[object]) -> None:
    """Prune a classifier in place with Torch-Pruning until it is within a budget of multiply-accumulates."""
    import torch_pruning

    network = task.network
    importance = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }[method]()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        network, images[:1], importance=importance, global_pruning=method in RANKED_TOGETHER, pruning_ratio=0.95,
        iterative_steps=STEPS, ignored_layers=[last], round_to=ROUND_TO, max_pruning_ratio=0.9,
    )  # fmt: skip
    batches = list(batches) if method == "taylor" else []
    for step in range(STEPS):
        if count_macs(network, images) <= budget:
            return
        if batches and step % GRADIENT_EVERY == 0:
            network.zero_grad()
            for batch in batches:
                losses, _ = task.losses(batch, regularise=False, teacher=None)
                torch.stack(list(losses.values())).sum().backward()
        pruner.step()
    raise SystemExit(f"{method} ended at {count_macs(network, images)} multiply-accumulates, above {budget:.0f}")


class Residual(nn.Module):
    """Layers with a shortcut."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return features + self.layers(features)


class Traceable:
    """A classifier of plain MBConv blocks as a chain of torch's layers that torch.fx can trace, with the same weights.

    Args:
        network: the classifier.

    Attributes:
        chain: the layers.
    """

    def __init__(self, network: nn.Module) -> None:
        self._replaced: list[tuple[nn.Conv2d, nn.Conv2d]] = []
        body, head = network.body, network.head
        self.chain = nn.Sequential(
            *self._unit(body.first_conv),
            *(self._block(block) for stage in body.stages for block in stage),
            *self._unit(head.final_expand), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), head.dropout, head.classifier,
        ).to(memory_format=torch.contiguous_format)  # fmt: skip

    def _unit(self, unit: nn.Module) -> list[nn.Module]:
        conv, layers = unit.conv, []
        if isinstance(conv, SamePaddingConv2d):  # of stride 2, for an even size of the input
            kernel, stride = conv.kernel_size[0], conv.stride[0]
            before = (kernel - stride) // 2
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, groups=conv.groups, bias=False)
            plain.weight = conv.weight
            self._replaced.append((conv, plain))
            layers.append(nn.ZeroPad2d(2 * (before, kernel - stride - before)))
            conv = plain
        return [*layers, conv, unit.norm, *([] if unit.activation is None else [unit.activation])]

    def _block(self, block: nn.Module) -> nn.Module:
        units = [unit for unit in (block.expand, block.depthwise, block.project) if unit is not None]
        layers = nn.Sequential(*(layer for unit in units for layer in self._unit(unit)))
        keeps = block.stride == 1 and units[0].conv.in_channels == units[-1].conv.out_channels
        return Residual(layers) if keeps else layers

    @torch.no_grad()
    def require_equal(self, network: nn.Module, images: Tensor) -> None:
        """Check that the chain computes what the classifier computes."""
        torch.testing.assert_close(self.chain.eval()(images), network.eval()(images), rtol=1e-4, atol=1e-4)

    def write_back(self) -> None:
        """Give the classifier the sizes and weights of the pruned chain."""
        for conv, plain in self._replaced:
            conv.weight, conv.groups = plain.weight, plain.groups
            conv.in_channels, conv.out_channels = plain.in_channels, plain.out_channels


def prune_with_fastnas(
    task: Task, inputs: Sequence[Tensor], labelled: Sequence[tuple[Tensor, Tensor]], share: float, checkpoint: Path
) -> None:
    """Prune a classifier in place with ModelOpt's FastNAS to a share of its multiply-accumulates.

    Args:
        task: the trained classifier.
        inputs: prepared images on which BatchNorms are recalibrated for each score.
        labelled: prepared images of the search split and their labels, on which cross entropy is the score.
        share: of the multiply-accumulates that remains.
        checkpoint: file of the scores of single choices, which other shares read again.
    """
    import modelopt.torch.prune

    network, traceable = task.network, Traceable(task.network)
    images = inputs[0][:1]
    traceable.require_equal(network, images)
    ratios = {"channels_ratio": WIDTH_RATIOS, "kernel_size": (), "channel_divisor": ROUND_TO}
    features = {"features_ratio": WIDTH_RATIOS, "feature_divisor": ROUND_TO}

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            losses = [functional.cross_entropy(model(batch), labels, reduction="sum") for batch, labels in labelled]
        return -float(sum(losses)) / sum(len(labels) for _, labels in labelled)

    mode = [("fastnas", {"nn.Conv2d": {"*": ratios}, "nn.BatchNorm2d": {"*": features}})]
    modelopt.torch.prune.prune(
        traceable.chain, mode=mode, constraints={"flops": f"{100 * share:g}%"}, dummy_input=(images,),
        config={
            "data_loader": [(batch,) for batch in inputs], "max_iter_data_loader": len(inputs), "score_func": score,
            "checkpoint": str(checkpoint), "verbose": False,
        },
    )  # fmt: skip
    traceable.write_back()
    traceable.require_equal(network, images)


def score_of(task: Task, batches: Iterable[object]) -> float:
    """The score on labelled batches."""
    task.eval()
    with torch.inference_mode():
        for batch in batches:
            task.update_metrics(batch)
    return task.compute_metrics()[task.score_key]


def prune(options: argparse.Namespace) -> None:
    """Prune, recalibrate, score, train, score, and add a line to ``peers.jsonl``, unless there is one already."""
    key = ("net", "seed", "method", "share")
    if any(all(line[name] == getattr(options, name) for name in key) for line in read_peers(options.runs)):
        return
    whole = options.runs / "finetune/small_cls" / f"{options.net}-S-{options.seed}"
    given = [f"supernet={options.net}", f"weights={whole}", f"seed={options.seed}", "arch=max", *options.overrides]
    config = read_config(composed(["stage=finetune", "task=small_cls", *given]), TrainConfig)
    set_threads(config.num_threads)
    table, parent = build_weights(config)
    assert parent is not None
    data = build_data(config.data, build_arch(config, table), table.preprocessing)
    task = build_task(config, table, build_arch(config, table), data)
    inherit(task, parent)
    batches = list(data.calibration_dataloader(config.calibration_images, data.batch_size))
    task.eval()

    def prepared(batch: Mapping[str, object]) -> Tensor:
        return task.prepared(batch, task.active_arch)["images"].contiguous()

    images = prepared(batches[0])
    before, start = count_macs(task.network, images), time.monotonic()
    if options.method == "fastnas":
        labelled = [(prepared(batch), batch["labels"]) for batch in data.search_dataloader()]
        checkpoint = options.runs / f"fastnas-{options.net}-{options.seed}.pth"
        inputs = [prepared(batch) for batch in batches[:CALIBRATION_BATCHES]]
        prune_with_fastnas(task, inputs, labelled, options.share, checkpoint)
    else:
        prune_with_depgraph(task, images, options.share * before, options.method, batches[:CALIBRATION_BATCHES])
    recalibrate_batch_norm(task.network, batches, lambda batch: task(batch["images"]))
    steps, trainer = config.trainer.max_steps, build_bare_trainer(config.trainer, config.trainer.max_steps or 1)
    settings = build_training_settings(config, steps or 1, data.batch_size)
    share = config.task.sampling.build().distillation
    module = TaskModule(task, settings, load_subnet(task, parent) if share else None)
    untrained = score_of(task, data.val_dataloader())
    data.stream(steps or 1, batches_per_step=1)
    trainer.fit(module.train(), datamodule=data)
    score = score_of(task, data.val_dataloader())
    line = {
        "net": options.net, "seed": options.seed, "method": options.method, "share": options.share,
        "macs": count_macs(task.eval().network, images), "whole_macs": before, "untrained": untrained, "score": score,
        "seconds": time.monotonic() - start,
    }  # fmt: skip
    with (options.runs / "peers.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(line)


def resized_within(run: Path, whole_macs: int, budget: float, sizes: Sequence[int]) -> Arch:
    """The whole network of a run at the largest of these input sizes within a budget of multiply-accumulates."""
    cfg = composed(["stage=predict"])
    cfg.weights, cfg.images = str(run), "-"
    config = read_config(with_trained_groups(cfg), PredictConfig)
    table = config.supernet.build()
    task = build_blank(config, replace(table, resolutions=tuple(sizes)) if sizes else table)  # type: ignore[type-var]
    archs = Problem(task.space, input_gene=task.input_gene).resized
    costs = task.cost_totals(archs).macs
    costs = costs - (costs[0] - whole_macs)  # the classifier of a task without data has another number of classes
    fitting = [(macs, arch) for macs, arch in zip(costs, archs, strict=True) if macs <= budget]
    if not fitting:
        raise SystemExit(f"the whole network of {run} is within {budget:.0f} multiply-accumulates at no input size")
    return max(fitting, key=lambda pair: pair[0])[1]


def searched_range(runs: Path, net: str, seed: int, shares: Sequence[float]) -> str:
    """The constraint of the search: from half of the smallest budget to the largest one."""
    macs = whole_result(runs, net, seed).costs.macs["total"]
    return f"{{macs: {{min: {LEAST_OF_BUDGET * min(shares) * macs:.0f}, max: {max(shares) * macs:.0f}}}}}"


def whole_result(runs: Path, net: str, seed: int) -> Result:
    """The result of the whole network's training."""
    result = read_result(runs / "finetune/small_cls" / f"{net}-S-{seed}")
    assert result is not None
    return result


def choose(runs: Path, net: str, seed: int, share: float, sizes: Sequence[int]) -> None:
    """Write ``ours-SHARE.yaml`` and ``resized-SHARE.yaml`` beside the archs of a search: the best within the budget."""
    run, search = runs / "finetune/small_cls" / f"{net}-S-{seed}", runs / "search/small_cls" / f"{net}-R-{seed}"
    whole_macs = whole_result(runs, net, seed).costs.macs["total"]
    budget = share * whole_macs
    fitting = [trial for trial in read_front(search).trials if trial.values["macs"] <= budget]
    if not fitting:
        raise SystemExit(f"no network on the front of {search} is within {budget:.0f} multiply-accumulates")
    best = max(fitting, key=lambda trial: trial.values["score"])
    for name, content in (
        ("ours", dict(best.arch)),
        ("resized", resized_within(run, whole_macs, budget, sizes).to_dict()),
    ):
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        write_text(search / files.ARCHS_FOLDER / f"{name}-{share:g}.yaml", text)


def read_ours(runs: Path) -> list[dict[str, object]]:
    """The lines of our subnets and of the whole network on smaller images, from their run folders."""
    lines: list[dict[str, object]] = []
    for folder in sorted((runs / "finetune/small_cls").glob("*-*-*-*")):
        net, method, seed, share = folder.name.rsplit("-", 3)
        result = read_result(folder)
        if method in ("ours", "resized") and result is not None:
            macs = result.costs.macs["total"]
            lines.append({"net": net, "seed": int(seed), "method": method, "share": float(share), "macs": macs,
                          "score": result.score})  # fmt: skip
    return lines


def read_peers(runs: Path) -> list[dict[str, object]]:
    """The lines of pruned networks."""
    path = runs / "peers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of the 95 % interval, in points."""
    mean = 100 * statistics.fmean(values)
    if len(values) - 1 not in STUDENT:
        return f"{mean:+.1f}"
    half = 100 * STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} ± {half:.1f}"


def table(runs: Path) -> None:
    """Print the scores of each method at each budget, and the paired differences of ours from the others.

    The last line counts the points, one for each other method, network and share, at which our mean is higher.
    """
    better, points = 0, 0
    lines: list[Mapping[str, object]] = [*read_ours(runs), *read_peers(runs)]
    print("| net | share of MACs | method | MACs (M) | top-1 (%), by seed | mean | ours minus it (95 %) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for net, share in sorted({(str(line["net"]), float(str(line["share"]))) for line in lines}):
        point = [line for line in lines if (line["net"], line["share"]) == (net, share)]
        ours = {line["seed"]: float(str(line["score"])) for line in point if line["method"] == "ours"}
        for method, label in METHODS.items():
            own = sorted((line for line in point if line["method"] == method), key=lambda line: int(str(line["seed"])))
            if not own:
                continue
            scores = [float(str(line["score"])) for line in own]
            macs = statistics.fmean(float(str(line["macs"])) for line in own) / 1e6
            paired = [ours[line["seed"]] - float(str(line["score"])) for line in own if line["seed"] in ours]
            differs = ""
            if paired and method != "ours":
                differs, better, points = interval(paired), better + (statistics.fmean(paired) > 0), points + 1
            by_seed = " ".join(f"{100 * score:.1f}" for score in scores)
            mean = f"{100 * statistics.fmean(scores):.1f}"
            print(f"| {net} | {share:g} | {label} | {macs:.1f} | {by_seed} | {mean} | {differs} |")
    print(f"\n{METHODS['ours']}: better at {better} of {points} points")


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    limits = commands.add_parser("range")
    limits.add_argument("runs", type=Path)
    limits.add_argument("net")
    limits.add_argument("seed", type=int)
    limits.add_argument("shares", type=float, nargs="+")
    chosen = commands.add_parser("choose")
    chosen.add_argument("runs", type=Path)
    chosen.add_argument("net")
    chosen.add_argument("seed", type=int)
    chosen.add_argument("share", type=float)
    chosen.add_argument(
        "sizes", type=int, nargs="*", help="of the images of the whole network; without: those of the space"
    )
    one = commands.add_parser("prune")
    one.add_argument("runs", type=Path)
    one.add_argument("net")
    one.add_argument("seed", type=int)
    one.add_argument("method", choices=[name for name in METHODS if name not in ("ours", "resized")])
    one.add_argument("share", type=float, help="of the whole network's multiply-accumulates, 0 to 1")
    one.add_argument("overrides", nargs="*")
    all_of_them = commands.add_parser("table")
    all_of_them.add_argument("runs", type=Path)
    options = parser.parse_args()
    if options.command == "prune":
        prune(options)
    elif options.command == "range":
        print(searched_range(options.runs, options.net, options.seed, options.shares))
    elif options.command == "choose":
        choose(options.runs, options.net, options.seed, options.share, options.sizes)
    else:
        table(options.runs)


if __name__ == "__main__":
    main()
