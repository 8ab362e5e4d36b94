"""Compare the time of evaluating a trial with that of a plain loop.

    python scripts/bench_evaluate.py [--task shapes_cls shapes_det ...] [--trials 12] [--precision 32 bf16]

Both evaluate the same archs of a supernet on drawn images: BatchNorm statistics on images of train, then all metrics
on the search split. The plain loop does without the optimisations of this program. For each arch it builds new data
loaders and a static NCHW float32 network, measures statistics as `torch.optim.swa_utils.update_bn` does, by passes of
the whole network, and uses the default memory allocator. The metrics are the same. It runs in a process of its own,
once before and once after this program, and the faster one counts. Images that this program resizes for the first
arch of an input size, and keeps for the others, are resized before the clock starts. The supernet is trained for a few
steps first, so that scores differ. With one thread, the times are CPU times, which other work on the machine disturbs
less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nas_transfer.api.running import composed
from nas_transfer.arch import Arch
from nas_transfer.runs import Evaluation
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.stages.finetune import run as train
from nas_transfer.tasks.task import Task

TASKS = ("shapes_cls", "shapes_det", "shapes_insseg", "shapes_pose", "shapes_seg")
PLAIN = "plain"


def main() -> None:
    """Run the comparison of each task and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--trials", type=int, default=12, help="number of archs")
    parser.add_argument("--steps", type=int, default=40, help="training steps of the supernet")
    parser.add_argument("--calibration", type=int, default=500, help="images for the statistics")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", default=["32", "bf16"], help="search.precision of this program")
    parser.add_argument("--loop", help=argparse.SUPPRESS)  # given to subprocesses
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        print(json.dumps(timed(options, options.task[0])))
        return
    print(
        f"bignas_nano, {options.trials} archs at their input sizes, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    print(
        "| task | images | precision | this program (s) | plain loop (s) | ratio (trials) | score differs by, at most |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in options.task:
        with tempfile.TemporaryDirectory() as folder:
            for row in compared(options, task, Path(folder)):
                print(f"| {task} | {row} |", flush=True)


def compared(options: argparse.Namespace, task: str, folder: Path) -> list[str]:
    """The cells of a task, one row for each precision."""
    settings = ["stage=finetune", *common(options, task), "arch=supernet", f"trainer.max_steps={options.steps}"]
    train(composed([*settings, "trainer.enable_progress_bar=false", f"run_dir={folder}"]), folder)
    first = in_process(task, PLAIN, folder)
    programs = [in_process(task, precision, folder) for precision in options.precision]
    second = in_process(task, PLAIN, folder)
    plain = [min(pair) for pair in zip(first["seconds"], second["seconds"], strict=True)]
    rows = []
    for precision, program in zip(options.precision, programs, strict=True):
        seconds = program["seconds"]
        ratios = [slow / fast for slow, fast in zip(plain, seconds, strict=True)]
        away = np.abs(np.subtract(program["scores"], first["exact"])).max()
        rows.append(
            f"{first['images']} | {precision} | {statistics.mean(seconds):.3f} | {statistics.mean(plain):.3f} | "
            f"**{sum(plain) / sum(seconds):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) | {away:.4f}"
        )
    return rows


def common(options: argparse.Namespace, task: str) -> list[str]:
    """The keys of both loops."""
    return [
        f"task={task}",
        f"num_threads={options.threads}",
        f"calibration_images={options.calibration}",
        "data.num_workers=0",
    ]


def in_process(task: str, loop: str, weights: Path) -> dict[str, Any]:
    """Time a loop in a new process."""
    environment = dict(os.environ)
    if loop == PLAIN:
        environment["MALLOC_PERTURB_"] = "0"  # without effect, but keeps the program from tuning the allocator
    command = [sys.executable, *sys.argv, "--task", task, "--loop", loop, "--weights", str(weights)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Seconds and scores of all archs in one loop, which is the plain one or a precision of this program."""
    is_plain = options.loop == PLAIN
    precision = "32" if is_plain else options.loop
    keys = ["stage=search", *common(options, task), f"weights={options.weights}", f"search.precision='{precision}'"]
    config = read_config(composed([*keys, *(["data.cache_mib=0"] if is_plain else [])]), SearchConfig)
    evaluator = build_evaluator(config, cache=not is_plain)
    space, rng = evaluator.supernet.space, np.random.default_rng(0)
    archs = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(options.trials - 2))]
    clock = time.process_time if options.threads == 1 else time.perf_counter

    def evaluate(arch: Arch) -> float:
        if is_plain:
            return plain_score(evaluator, arch)
        return evaluator.evaluate(Evaluation(0, arch.to_dict())).values["score"]

    by_size = {evaluator.supernet.input_size(arch): arch for arch in archs}
    for arch in (
        [archs[0]] if is_plain else by_size.values()
    ):  # each input size once, as in the first trials of a search
        evaluate(arch)
    seconds, scores = [], []
    for arch in archs:
        start = clock()
        scores.append(evaluate(arch))
        seconds.append(clock() - start)
    exact = [plain_score(evaluator, arch, exact=True) for arch in archs] if is_plain else []
    images = sum(len(batch["images"]) for batch in evaluator.search)  # type: ignore[arg-type,misc]
    return {"seconds": seconds, "scores": scores, "exact": exact, "images": f"{options.calibration} + {images}"}


def plain_score(loaders: TrialEvaluator, arch: Arch, exact: bool = False) -> float:
    """The score of an arch by the plain loop.

    Args:
        loaders: an evaluator that holds data loaders instead of cached batches.
        arch: the arch.
        exact: measure statistics as this program does.
    """
    subnet: Task = loaders.supernet.extract(arch)
    subnet.network = subnet.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    subnet.as_deployed = False  # images of a batch share a pass, as in this program
    if exact:
        subnet.calibrate(loaders.calibration)
    else:
        update_statistics(subnet, loaders.calibration)
    subnet.eval().ground_truth = loaders.ground_truth
    with torch.no_grad():
        for batch in loaders.search:
            subnet.update_metrics(batch)
    return subnet.compute_metrics()[subnet.score_key]


def update_statistics(subnet: Task, batches: Iterable[Mapping[str, object]]) -> None:
    """Measure statistics like torch's `update_bn`, in passes of a network in eval mode, whose losses need no labels."""
    subnet.eval()
    for module in subnet.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
            module.train()
    with torch.no_grad():
        for batch in batches:
            subnet.forward_batch(batch)


if __name__ == "__main__":
    main()
