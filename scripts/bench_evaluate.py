"""Compare the time of evaluating a trial with that of a plain loop.

    python scripts/bench_evaluate.py [--trials 16] [--precision bf16]

Both evaluate the same archs of a supernet on `shapes_cls`: BatchNorm statistics on 500 images of train, then top-1 on
the search split. The plain loop does without the optimisations of this program. For each arch it builds new data
loaders and a static NCHW float32 network, measures statistics with `torch.optim.swa_utils.update_bn`, and uses the
default memory allocator. It runs in a separate process, once before and once after this program. The supernet is
trained for a few steps first, so that scores differ.
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
from nas_transfer.arch import Arch
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.stages.finetune import run as train
from nas_transfer.tasks.task import Task

NUM_CALIBRATION = 500
LOOPS = ("program", "plain")


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, help="number of archs")
    parser.add_argument("--steps", type=int, default=60, help="training steps of the supernet")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="32", help="search.precision of this program: 32 or bf16")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)  # given to subprocesses
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        print(json.dumps(timed(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        train_supernet(options, Path(folder))
        first = in_process("plain", folder)
        program = in_process("program", folder)
        second = in_process("plain", folder)
    seconds, plain = program["seconds"], [min(pair) for pair in zip(first["seconds"], second["seconds"], strict=True)]
    differences = {
        "the same statistics in NCHW float32": np.abs(np.subtract(program["scores"], first["exact"])),
        "the statistics of update_bn (all batches weigh the same)": np.abs(
            np.subtract(program["scores"], first["scores"])
        ),
    }
    print(
        f"bignas_nano, {options.trials} archs at their resolutions, {NUM_CALIBRATION} + {program['images']} images, "
        f"{options.threads} threads, precision {options.precision}, torch {torch.__version__}"
    )
    print(f"this program  {statistics.mean(seconds):8.3f} s/trial")
    print(f"plain loop    {statistics.mean(plain):8.3f} s/trial (the faster of two runs)")
    ratios = " ".join(f"{slow / fast:.2f}" for slow, fast in zip(plain, seconds, strict=True))
    print(f"plain loop / this program: {sum(plain) / sum(seconds):.2f} in total; trials {ratios}")
    for name, values in differences.items():
        print(f"score against {name}: differs by {values.mean():.5f} on average, {values.max():.5f} at most")


def configuration(options: argparse.Namespace, *overrides: str) -> DictConfig:
    """Compose the configuration of a command on `shapes_cls`."""
    common = ["task=shapes_cls", f"num_threads={options.threads}", f"calibration_images={NUM_CALIBRATION}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*common, *overrides])


def train_supernet(options: argparse.Namespace, folder: Path) -> None:
    """Train the supernet for a few steps."""
    steps = [f"trainer.max_steps={options.steps}", "trainer.enable_progress_bar=false", "arch=supernet"]
    train(configuration(options, "stage=pretrain", *steps), folder)


def in_process(loop: str, weights: str) -> dict[str, list[float]]:
    """Time a loop in a new process."""
    environment = dict(os.environ)
    if loop == "plain":
        environment["MALLOC_PERTURB_"] = (
            "0"  # without effect by itself, but keeps the program from tuning the allocator
        )
    command = [sys.executable, *sys.argv, "--loop", loop, "--weights", weights]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(options: argparse.Namespace) -> dict[str, object]:
    """Seconds and scores of all archs in one loop."""
    is_program = options.loop == "program"
    search = configuration(
        options, "stage=search", f"weights={options.weights}", f"search.precision='{options.precision}'"
    )
    evaluator = build_evaluator(read_config(search, SearchConfig), cache=is_program)
    space = evaluator.supernet.space
    rng = np.random.default_rng(0)
    archs = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(options.trials - 2))]

    def evaluate(arch: Arch) -> float:
        if not is_program:
            return plain_score(evaluator, arch)
        return evaluator.evaluate(Evaluation(0, arch.to_dict())).values["score"]

    evaluate(space.smallest())  # warm up
    seconds, scores = [], []
    for arch in archs:
        start = time.perf_counter()
        scores.append(evaluate(arch))
        seconds.append(time.perf_counter() - start)
    exact = [] if is_program else [plain_score(evaluator, arch, exact=True) for arch in archs]
    images = sum(len(batch["sample_ids"]) for batch in evaluator.search)
    return {"seconds": seconds, "scores": scores, "exact": exact, "images": images}


def plain_score(loaders: TrialEvaluator, arch: Arch, exact: bool = False) -> float:
    """Top-1 of an arch by the plain loop.

    Args:
        loaders: an evaluator that holds data loaders instead of cached batches.
        arch: the arch.
        exact: measure statistics as this program does.
    """
    subnet: Task = loaders.supernet.extract(arch)
    network = subnet.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if exact:
        subnet.network = network
        subnet.calibrate(loaders.calibration)
    else:
        torch.optim.swa_utils.update_bn((preprocess(subnet, batch, arch) for batch in loaders.calibration), network)
    network.eval()
    correct = total = 0
    with torch.no_grad():
        for batch in loaders.search:
            correct += int((network(preprocess(subnet, batch, arch)).argmax(1) == batch["labels"]).sum())
            total += len(batch["labels"])
    return correct / total


def preprocess(subnet: Task, batch: dict[str, torch.Tensor], arch: Arch) -> torch.Tensor:
    """Normalise images and resize them to the input size of an arch."""
    inputs = subnet.normalise(batch["images"])  # type: ignore[operator]
    size = subnet.input_size(arch)
    if inputs.shape[-2:] != size:
        inputs = torch.nn.functional.interpolate(inputs, size, mode="bicubic", align_corners=False)
    return inputs.contiguous()


if __name__ == "__main__":
    main()
