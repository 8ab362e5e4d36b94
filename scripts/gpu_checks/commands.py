"""Commands as a user gives them: training, resuming, searching, evaluating, exporting, on drawn images."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gpu_checks.context import CommandError, Context, count_convolutions
from gpu_checks.table import Row, at_least, at_most, near, skipped, stated
from nas_transfer.runs import Outcome, Result, files, read_front, read_outcome, read_result

LEAST_SCORE = 0.09
"""mAP of the detector; see `check_detector`."""
LARGEST_SCORE_DIFFERENCE = 0.005
"""Of an mAP by evaluation in bfloat16."""


def _detection(context: Context) -> list[str]:
    """Detection on drawn images; a set of its own for each size."""
    common = ["task=shapes_det", "data.root=shapes_det", "trainer.enable_progress_bar=false", "sample_predictions=0"]
    if not context.tiny:
        return [*common, "data.draw.num_train=800", "data.draw.num_val=100", "calibration_images=100"]
    sizes = ["data.draw.num_train=40", "data.draw.num_val=8", "data.draw.image_size=64", "data.batch_size=4"]
    detector = ["task.build.detector.min_size=64", "task.build.detector.max_size=80"]
    return [*common, *sizes, *detector, "calibration_images=8", "data.split.search_fraction=0.2"]


def _classification(context: Context) -> list[str]:
    """Training of a supernet for classification, by SGD: with Adam, rounding decides the sign of many updates."""
    sizes = (60, 12, 48, 10) if context.tiny else (600, 100, 64, 32)
    names = ("data.draw.num_train", "data.draw.num_val", "data.draw.image_size", "data.batch_size")
    steps, every = (8, 2) if context.tiny else (80, 10)
    return [
        "stage=pretrain", "task=shapes_cls", "arch=supernet", "data.root=shapes_cls", "calibration_images=20",
        "trainer.enable_progress_bar=false", "task.recipe.optimizer=sgd", "task.recipe.lr=0.05",
        "trainer.max_epochs=1000",
        *(f"{name}={size}" for name, size in zip(names, sizes, strict=True)),
        f"trainer.max_steps={steps}", f"checkpoint_every_n_steps={every}",
    ]  # fmt: skip


def _trained_supernet(context: Context) -> Path:
    """The folder of a supernet trained for detection."""
    steps = 4 if context.tiny else 100
    sampling = ["task.sampling.num_random=1", f"trainer.max_steps={steps}", "trainer.max_epochs=1000"]
    context.command(*_detection(context), "stage=finetune", "arch=supernet", "name=supernet", *sampling)
    return context.run_folder("finetune", "shapes_det", "supernet")


def _pretrained_supernet(context: Context) -> Path:
    """The folder of a supernet trained for classification."""
    context.command(*_classification(context), "name=whole")
    return context.run_folder("pretrain", "shapes_cls", "whole")


def _trained_detector(context: Context) -> Path:
    """The folder of one subnet trained for detection."""
    steps = ["trainer.max_epochs=1000", "trainer.max_steps=500", "trainer.log_every_n_steps=1"]
    if context.tiny:
        steps[1:2] = ["trainer.max_steps=24", "task.recipe.lr=0.002", "task.recipe.warmup_steps=0"]
    context.command(*_detection(context), "stage=finetune", "arch=max", "name=detector", *steps)
    return context.run_folder("finetune", "shapes_det", "detector")


def _result(folder: Path) -> Result:
    result = read_result(folder)
    if result is None:
        raise CommandError(f"{folder} has no result")
    return result


def _all_on_device(context: Context, name: str, counts: dict[str, int]) -> Row:
    """Whether all convolutions ran on the device: a command that leaves work to the CPU is right, but slow."""
    share = counts[context.device.type] / max(sum(counts.values()), 1)
    return near(f"{name}: share of convolutions on {context.device.type}", share, 1.0, 0.0)


def check_detector(context: Context) -> Iterator[Row]:
    """Train a detector on drawn images, to a falling loss and, unless tiny, to a score.

    On a CPU, 500 steps gave an mAP of 0.185; half of that is asked for.
    """
    context.peak_mib()
    with count_convolutions() as counts:
        folder = _trained_detector(context)
    result = _result(folder)
    losses = _losses(folder)
    third = len(losses) // 3
    yield at_most("shapes_det: last / first losses", sum(losses[-third:]) / sum(losses[:third]), 0.9)
    if not context.tiny:
        yield at_least("shapes_det: mAP", math.nan if result.score is None else result.score, LEAST_SCORE)
    yield stated("shapes_det: training", result.images_seen / result.seconds, "images/s")
    gpu_seconds = result.seconds if context.on_gpu else 0.0
    yield near("shapes_det: GPU time in the result", 3600 * result.gpu_hours, gpu_seconds, 0.01 * gpu_seconds, "s")
    peak = context.peak_mib()
    if peak is not None:
        yield stated("shapes_det: peak memory", peak, "MiB")
    yield _all_on_device(context, "shapes_det", counts)


def _losses(folder: Path) -> list[float]:
    """The training loss of each step."""
    (log,) = files.metrics_files(folder)
    head, *lines = (line.split(",") for line in log.read_text().splitlines())
    column = head.index("train/loss")
    return [float(line[column]) for line in lines if line[column]]


def check_resume(context: Context) -> Iterator[Row]:
    """A training that is killed and resumed against one that is not: equal on a CPU, nearly so on a GPU."""
    with count_convolutions() as counts:
        whole = _pretrained_supernet(context)
    killed = context.run_folder("pretrain", "shapes_cls", "killed")
    arguments = [*_classification(context), "name=killed"]
    _kill_after_first_checkpoint(context, arguments, killed / files.LAST_CHECKPOINT)
    if read_result(killed) is not None:
        raise CommandError("the training ended before it was killed")
    context.command(*arguments)
    same = _result(whole).samples_digest == _result(killed).samples_digest
    yield near("shapes_cls: same samples seen", float(same), 1.0, 0.0)
    # A GPU adds up in any order, and training makes these differences larger.
    allowed = 1e-2 if context.on_gpu else 0.0
    yield near("shapes_cls: resumed weights' difference", _weight_difference(killed, whole), 0.0, allowed)
    yield _all_on_device(context, "shapes_cls supernet", counts)


def _kill_after_first_checkpoint(context: Context, arguments: Sequence[str], checkpoint: Path) -> None:
    process = context.start_command(*arguments)
    try:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    if not checkpoint.exists():
        raise CommandError(f"{' '.join(arguments)} ended with {process.returncode} before its first checkpoint")


def _weight_difference(folder: Path, reference: Path) -> float:
    """The norm of the difference of all weights as a share of their norm."""
    ours, theirs = (_tensors(each / files.WEIGHTS) for each in (folder, reference))
    difference = sum((ours[name].double() - tensor.double()).square().sum().item() for name, tensor in theirs.items())
    norm = sum(tensor.double().square().sum().item() for tensor in theirs.values())
    return math.sqrt(difference / norm)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True, map_location="cpu")
    return {f"{part}.{name}": tensor for part in ("body", "rest") for name, tensor in content[part].items()}


def check_search(context: Context) -> Iterator[Row]:
    """Search the archs of a trained supernet."""
    with count_convolutions() as counts:
        weights = _trained_supernet(context)
        yield from _searched(context, "search", f"weights={weights}")
    yield _all_on_device(context, "supernet and search", counts)


def check_proxy_search(context: Context) -> Iterator[Row]:
    """Train every candidate briefly from the weights of a supernet of classification."""
    steps, warmup = (2, 2) if context.tiny else (10, 20)
    with count_convolutions() as counts:
        weights = _pretrained_supernet(context)
        yield from _searched(
            context, "proxy", f"weights={weights}", f"proxy.rungs=[{steps}]", f"proxy.warmup_steps={warmup}"
        )
    yield _all_on_device(context, "proxy search", counts)


def check_workers(context: Context) -> Iterator[Row]:
    """Search with one worker, and with two that share the GPU: processes that load the supernet once."""
    weights = _trained_supernet(context)
    for workers in (2,) if context.tiny else (1, 2):
        yield from _searched(
            context, "search", f"weights={weights}", f"search.workers={workers}", title=f"search.workers={workers}"
        )


def _searched(context: Context, stage: str, *overrides: str, title: str = "") -> Iterator[Row]:
    title = title or stage
    trials, name = 4 if context.tiny else 20, title.replace("=", "_")
    seconds = context.command(*_search_arguments(context, stage, trials), *overrides, f"name={name}")
    folder = context.run_folder(stage, "shapes_det", name)
    outcomes = _outcomes(folder)
    failed = [outcome.reason for outcome in outcomes if outcome.reason is not None]
    if failed:
        print(*failed, sep="\n")
    front = read_front(folder)
    yield near(f"{title}: trials", len(outcomes), trials, 0)
    yield at_most(f"{title}: failed trials", len(failed), 0)
    yield at_least(f"{title}: trials on the front", 0 if front is None else len(front.trials), 1)
    yield near(
        f"{title}: trials on {context.device.type}", sum(o.device == context.device.type for o in outcomes), trials, 0
    )
    yield stated(f"{title}: time", seconds / trials, "s/trial")


def _search_arguments(context: Context, stage: str, trials: int) -> list[str]:
    batch = min(trials, 10)
    return [
        *_detection(context), f"stage={stage}", f"search.trials={trials}", f"search.ask_batch={batch}",
        f"search.trials_per_job={batch}", f"search.sampler.num_random={batch}",
    ]  # fmt: skip


def _outcomes(folder: Path) -> list[Outcome]:
    return [read_outcome(path) for path in files.trial_files(folder)]


def check_bf16_evaluation(context: Context) -> Iterator[Row]:
    """Scores in bfloat16 against float32: the largest and smallest arch of a supernet, and candidates of a search."""
    weights = _trained_supernet(context)
    for arch in ("max", "min"):
        with count_convolutions() as counts:
            exact, rounded = (_score(context, weights, arch, precision) for precision in ("32-true", "bf16-mixed"))
        yield near(f"evaluate {arch} in bf16: mAP", rounded, exact, LARGEST_SCORE_DIFFERENCE)
        yield _all_on_device(context, f"evaluate {arch}", counts)
    trials = 2 if context.tiny else 5
    values = []
    for precision in ("32", "bf16"):
        arguments = [*_search_arguments(context, "search", trials), f"weights={weights}"]
        context.command(*arguments, f"search.precision={precision}", f"name=in_{precision}")
        outcomes = _outcomes(context.run_folder("search", "shapes_det", f"in_{precision}"))
        values.append([outcome.values.get("score", math.nan) for outcome in outcomes])
    differences = [abs(left - right) for left, right in zip(*values, strict=True)]
    yield at_most("search in bf16: largest difference of mAP", max(differences), LARGEST_SCORE_DIFFERENCE)


def _score(context: Context, weights: Path, arch: str, precision: str) -> float:
    name = f"{arch}_{precision}"
    options = [f"weights={weights}", f"arch={arch}", f"trainer.precision={precision}", f"name={name}"]
    context.command(*_detection(context), "stage=evaluate", *options)
    score = _result(context.run_folder("evaluate", "shapes_det", name)).score
    return math.nan if score is None else score


def check_data_loading(context: Context) -> Iterator[Row]:
    """Training with the images loaded in the same process and in two others: same samples, images a second."""
    steps = 3 if context.tiny else 60
    digests = []
    for workers in (0, 2):
        name = f"workers_{workers}"
        options = ["arch=min", f"num_workers={workers}", f"trainer.max_steps={steps}", "trainer.max_epochs=1000"]
        context.command(*_detection(context), "stage=finetune", f"name={name}", *options)
        result = _result(context.run_folder("finetune", "shapes_det", name))
        digests.append(result.samples_digest)
        yield stated(f"shapes_det min, {workers} loading processes", result.images_seen / result.seconds, "images/s")
    yield near("same samples with 0 and 2 loading processes", float(digests[0] == digests[1]), 1.0, 0.0)


def check_export(context: Context) -> Iterator[Row]:
    """Export the detector of `check_detector`; the stage itself compares ONNX Runtime with torch."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime", "safetensors") if not _is_installed(name)]
    if missing:
        yield skipped("all", f"{', '.join(missing)} not installed: pip install 'nas-transfer[export]'")
        return
    weights = _trained_detector(context)
    context.command("stage=export", f"weights={weights}", "name=exported")
    result = _result(context.run_folder("export", "shapes_det", "exported"))
    if result.export is None or result.score is None:
        raise CommandError("the export has no scores")
    yield near("shapes_det: mAP by ONNX Runtime", result.score, result.export.score_torch, 0.005)
    for name, difference in result.export.difference.items():
        yield at_most(f"shapes_det: {name}'s difference", difference, 0.01)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
