"""Compare the time of a training step with that of a bare loop over the same network and batches.

    python scripts/bench_training.py [--steps 20] [--rounds 3] [--fused] [key=value ...]

Trains one arch of each task with drawn images, or of the task of the keys (`task=small_det data.root=DIR`), as
`stage=finetune` does, and in a bare loop: load a batch, compute the losses, call ``backward``, clip the gradients where
the recipe does, and make a step of the same optimiser, with torch's default settings or, with ``--fused``, by its fused
kernels, as `stage=finetune` does on a CPU. Both begin with the same weights and see the same batches, in turn, in one
process. Times are of whole steps, loading included; the first three of each round are left out. Prints medians, their
ratio in each round, and how much of a step of the bare loop is spent waiting for its batch.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from nas_transfer.api.running import composed
from nas_transfer.arch import SUPERNET
from nas_transfer.stages.common.build import build_arch, build_data, build_task, build_weights, set_threads
from nas_transfer.stages.common.training import train
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.tasks.checkpoint import inherit
from nas_transfer.tasks.training import TaskModule

TASKS = ("shapes_cls", "shapes_det", "shapes_insseg", "shapes_pose", "shapes_seg")
WARM_UP = 3


def main() -> None:
    """Time both loops for each task and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each loop, in turn")
    parser.add_argument("--fused", action="store_true", help="let the bare loop use a fused optimiser, too")
    parser.add_argument("keys", nargs="*", help="of the configuration; a task among them is the only one")
    options = parser.parse_args()
    given = [key for key in options.keys if key.startswith("task=")]
    print(f"torch {torch.__version__}, {options.rounds} rounds of {options.steps} steps")
    print("| task | bare loop (ms) | this program (ms) | ratio (rounds) | loading |")
    print("| --- | --- | --- | --- | --- |")
    for task in given or [f"task={name}" for name in TASKS]:
        keys = [task, *(key for key in options.keys if key not in given)]
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {task.partition('=')[2]} | {compared(keys, Path(folder), options)} |")


def compared(keys: list[str], folder: Path, options: argparse.Namespace) -> str:
    """The cells of a task: medians of both loops, their ratio and the share of loading."""
    own = ["arch=max", "num_threads=1", f"data.root={folder}/data", "data.draw.num_val=4", "data.draw.num_train=64"]
    embedded = keys[0].startswith("task=shapes_")
    common = [*keys[:1], *(own if embedded else own[:2]), *keys[1:]]
    bare, program, ratios, shares = [], [], [], []
    for number in range(options.rounds):
        run = folder / str(number)
        steps = WARM_UP + options.steps
        fixed = [f"trainer.max_steps={steps}", "trainer.enable_progress_bar=false", "scoring.every=null"]
        cfg = composed(["stage=finetune", *common, *fixed, "sample_predictions=0", f"run_dir={run}"])
        config = read_config(cfg, TrainConfig)
        run.mkdir(parents=True)
        loading, whole = bare_steps(config, steps, options.fused)
        bare.append(statistics.median(whole[WARM_UP:]))
        shares.append(sum(loading[WARM_UP:]) / sum(whole[WARM_UP:]))
        program.append(statistics.median(program_steps(config, run)[WARM_UP - 1 :]))
        ratios.append(program[-1] / bare[-1])
    listed = " ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    return (
        f"{1000 * statistics.median(bare):.1f} | {1000 * statistics.median(program):.1f} | "
        f"**{statistics.median(ratios):.3f}** ({listed}) | {statistics.median(shares):.1%}"
    )


def bare_steps(config: TrainConfig, steps: int, fused: bool) -> tuple[list[float], list[float]]:
    """Seconds of loading and of the whole step, for each step of a bare loop."""
    set_threads(config.num_threads)
    table, parent = build_weights(config)
    arch = build_arch(config, table)
    if arch is SUPERNET:
        raise SystemExit("bench_training.py compares the training of one arch: use arch=max")
    data = build_data(config.data, arch, table.preprocessing)
    task = build_task(config, table, arch, data)
    if parent is not None:
        inherit(task, parent)
    data.stream(steps, batches_per_step=1)
    task.network.train()
    recipe = config.task.recipe.build()
    optimizer = recipe.build_optimizer(task.network, fused=fused)
    batches = iter(data.train_dataloader())
    loading, whole = [], []
    for _ in range(steps):
        began = time.perf_counter()
        batch = next(batches)
        loading.append(time.perf_counter() - began)
        losses, _ = task.losses(batch, regularise=True, teacher=None)
        torch.stack(list(losses.values())).sum().backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(task.network.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        whole.append(time.perf_counter() - began)
    return loading, whole


def program_steps(config: TrainConfig, folder: Path) -> list[float]:
    """Seconds between the ends of two steps of `stage=finetune`."""
    ends: list[float] = []

    def note(*_: object) -> None:
        ends.append(time.perf_counter())

    with mock.patch.object(TaskModule, "on_train_batch_end", note):
        train(config, folder)
    return [after - before for before, after in itertools.pairwise(ends)]


if __name__ == "__main__":
    main()
