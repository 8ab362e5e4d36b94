"""Seconds to evaluate a candidate, against the straightforward loop: python scripts/bench_evaluate.py

Both evaluate the same archs of a supernet of `shapes_cls`: BatchNorm statistics on 500 images of train, then top-1 on
the search split. The straightforward loop is what one writes without a search in mind: for each candidate a data loader
of its own, a static NCHW float32 network, statistics by `torch.optim.swa_utils.update_bn`, then a loop over the split,
in a process with the allocator's defaults. It runs in a process of its own before and after ours. The supernet is
trained for a few steps first, so that scores are not all alike.
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
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.space import Arch
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.stages.finetune import run as train
from nas_transfer.tasks.task import Task

NUM_CALIBRATION = 500
WAYS = ("ours", "straightforward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="of supernet training before")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="32", help="of ours: 32 or bf16")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a subprocess
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(timed(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        train_supernet(options, Path(folder))
        first = in_process("straightforward", folder)
        ours = in_process("ours", folder)
        second = in_process("straightforward", folder)
    plain = [min(pair) for pair in zip(first["seconds"], second["seconds"], strict=True)]
    differences = {
        "the same statistics in NCHW float32": np.abs(np.subtract(ours["scores"], first["exact"])),
        "update_bn's statistics (batches weigh alike)": np.abs(np.subtract(ours["scores"], first["scores"])),
    }
    print(
        f"bignas_nano, {options.candidates} archs, {NUM_CALIBRATION} + {ours['images']} images, own resolutions, "
        f"{options.threads} threads, ours at precision {options.precision}, torch {torch.__version__}"
    )
    print(f"ours             {statistics.mean(ours['seconds']):8.3f} s/candidate")
    print(f"straightforward  {statistics.mean(plain):8.3f} s/candidate (the faster of two runs)")
    shown = " ".join(f"{slow / fast:.2f}" for slow, fast in zip(plain, ours["seconds"], strict=True))
    print(f"straightforward / ours: {sum(plain) / sum(ours['seconds']):.2f} in total; candidates {shown}")
    for name, values in differences.items():
        print(f"score against {name}: differs by {values.mean():.5f} in the mean, {values.max():.5f} at most")


def configuration(options: argparse.Namespace, *overrides: str) -> DictConfig:
    common = ["task=shapes_cls", f"num_threads={options.threads}", f"calibration_images={NUM_CALIBRATION}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*common, *overrides])


def train_supernet(options: argparse.Namespace, folder: Path) -> None:
    steps = [f"trainer.max_steps={options.steps}", "trainer.enable_progress_bar=false", "arch=supernet"]
    train(configuration(options, "stage=pretrain", *steps), folder)


def in_process(way: str, weights: str) -> dict[str, list[float]]:
    environment = dict(os.environ)
    if way == "straightforward":
        environment["MALLOC_PERTURB_"] = "0"  # changes nothing, but the program then leaves the allocator alone
    command = [sys.executable, *sys.argv, "--way", way, "--weights", weights]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(options: argparse.Namespace) -> dict[str, object]:
    """Seconds and scores of all candidates in one way."""
    ours = options.way == "ours"
    search = configuration(
        options, "stage=search", f"weights={options.weights}", f"search.precision='{options.precision}'"
    )
    evaluator = build_evaluator(read_config(search, SearchConfig), cache=ours)
    space = evaluator.supernet.table.space
    rng = np.random.default_rng(0)
    archs = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(options.candidates - 2))]

    def evaluate(arch: Arch) -> float:
        return evaluator.evaluate(Evaluation(0, arch.to_dict())).values["score"] if ours else plain(evaluator, arch)

    evaluate(space.smallest())  # what is only done once
    seconds, scores = [], []
    for arch in archs:
        start = time.perf_counter()
        scores.append(evaluate(arch))
        seconds.append(time.perf_counter() - start)
    exact = [] if ours else [plain(evaluator, arch, exact=True) for arch in archs]
    images = sum(len(batch["sample_ids"]) for batch in evaluator.search)
    return {"seconds": seconds, "scores": scores, "exact": exact, "images": images}


def plain(loaders: TrialEvaluator, arch: Arch, exact: bool = False) -> float:
    """A candidate's top-1 by the straightforward loop, or with our statistics in it.

    `loaders` holds data loaders instead of batches.
    """
    subnet: Task = loaders.supernet.extract(arch)
    network = subnet.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if exact:
        subnet.network = network
        subnet.calibrate(loaders.calibration)
    else:
        torch.optim.swa_utils.update_bn((preprocess(subnet, batch, arch) for batch in loaders.calibration), network)
    network.eval()
    right = total = 0
    with torch.no_grad():
        for batch in loaders.search:
            right += int((network(preprocess(subnet, batch, arch)).argmax(1) == batch["labels"]).sum())
            total += len(batch["labels"])
    return right / total


def preprocess(subnet: Task, batch: dict[str, torch.Tensor], arch: Arch) -> torch.Tensor:
    inputs = subnet.normalise(batch["images"])  # type: ignore[operator]
    size = subnet.input_size(arch)
    if inputs.shape[-2:] != size:
        inputs = torch.nn.functional.interpolate(inputs, size, mode="bicubic", align_corners=False)
    return inputs.contiguous()


if __name__ == "__main__":
    main()
