"""Networks by themselves: subnets against the supernet, latency, torch.compile."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gpu_checks.context import Context, exact_float32
from gpu_checks.table import Row, at_most, near, skipped, stated
from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.search.latency_table import pass_times
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.task import TaskSettings

CLASSES = 10
FAMILIES = ("bignas_nano", "detnas_nano", "resnet50")
LARGEST_DIFFERENCE = {torch.float32: (1e-3, 0.1), torch.float64: (1e-9, 1e-7)}
"""Of outputs as a share of the largest one, and of the gradient as a share of its norm.

Wrong weights show in float64. In float32, rounding alone changes the gradient of a random network by up to 0.03 (on a
CPU, against float64), since it decides on which side of a ReLU's kink a value lies.
"""


def build_task(context: Context, supernet: str, arch: ArchOrSupernet) -> ClassificationTask:
    """A classification task with random weights, on the device."""
    torch.manual_seed(0)
    settings = TaskSettings(context.table(supernet), arch, CLASSES)
    return ClassificationTask(settings, label_smoothing=0.0, dropout=0.0).to(context.device)


def check_subnets(context: Context) -> Iterator[Row]:
    """Outputs and gradients of the active subnet of each family's supernet against those of the extracted subnet."""
    for supernet in FAMILIES[:2] if context.tiny else FAMILIES:
        for kind, (outputs_bound, gradients_bound) in LARGEST_DIFFERENCE.items():
            task = build_task(context, supernet, SUPERNET).to(kind)
            space = task.space
            archs = {space.largest(), space.smallest(), space.sample(np.random.default_rng(0))}
            with exact_float32():
                found = [_subnet_differences(context, task, arch, kind) for arch in archs]
            outputs, gradients = (max(column) for column in zip(*found, strict=True))
            name = f"{supernet}, {str(kind).removeprefix('torch.')}"
            yield at_most(f"{name}: outputs of subnets", outputs, outputs_bound)
            yield at_most(f"{name}: gradients of subnets", gradients, gradients_bound)


def _subnet_differences(
    context: Context, supernet: ClassificationTask, arch: Arch, kind: torch.dtype
) -> tuple[float, float]:
    """Largest difference of outputs and gradients between an active and an extracted subnet, both in training mode."""
    generator = torch.Generator().manual_seed(0)
    batch, height, width = (4, 64, 80) if context.tiny else (8, 160, 192)
    images = torch.randn(batch, 3, height, width, generator=generator, dtype=kind).to(context.device)
    weights = torch.randn(batch, CLASSES, generator=generator, dtype=kind).to(context.device)
    subnet = supernet.extract(arch)
    supernet.set_arch(arch)
    outputs = []
    for task in (supernet, subnet):
        task.train().zero_grad()
        outputs.append(task.network(images))
        (outputs[-1] * weights).sum().backward()
    cut_out = gradients_of(supernet).extract(arch)
    gradients = [
        torch.cat([tensor.flatten() for tensor in tensors])
        for tensors in (cut_out.network.parameters(), map(_gradient, subnet.network.parameters()))
    ]
    return relative_difference(*outputs), ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()


def gradients_of(supernet: ClassificationTask) -> ClassificationTask:
    """A supernet whose weights are the gradients of another one, so that a subnet's gradients can be extracted."""
    holder = supernet.rebuild(supernet.settings).to(device=supernet.device, dtype=supernet.dtype)
    with torch.no_grad():
        for held, parameter in zip(holder.network.parameters(), supernet.network.parameters(), strict=True):
            held.copy_(_gradient(parameter))
    return holder


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """The largest difference as a share of the largest value of the reference."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def check_latency(context: Context) -> Iterator[Row]:
    """The latency that searches measure, by the clock of the computer, against events on the GPU in the same passes."""
    nets = [("bignas_nano", 64, 1)]
    if not context.tiny:
        nets += [("bignas", 224, 1), ("bignas", 224, 64)]
    for supernet, size, batch in nets:
        table = context.table(supernet)
        network = build_task(context, supernet, table.space.largest()).network.eval()
        clock = _Clock(context, network)
        by_computer = statistics.median(pass_times(clock, (batch, 3, size, size), context.device, 10, 30).tolist())
        by_device = statistics.median(clock.milliseconds()[10:])
        name = f"{supernet} max, {size} px, batch {batch}"
        yield near(f"{name}: latency", by_computer, by_device, max(0.2 * by_device, 0.2), "ms")


class _Clock:
    """Runs a network and times each pass by events on the GPU; by the computer's clock without one."""

    def __init__(self, context: Context, network: nn.Module) -> None:
        self.context = context
        self.network = network
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds: list[float] = []

    def __call__(self, images: Tensor) -> None:
        if not self.context.on_gpu:
            start = time.perf_counter()
            self.network(images)
            self.seconds.append(time.perf_counter() - start)
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        self.network(images)
        after.record()
        self.events.append((before, after))

    def milliseconds(self) -> Sequence[float]:
        """Of each pass."""
        self.context.synchronise()
        return [1000 * second for second in self.seconds] + [first.elapsed_time(last) for first, last in self.events]


def check_compile(context: Context) -> Iterator[Row]:
    """A subnet with and without torch.compile: outputs and images a second."""
    if context.on_gpu and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        yield skipped("all", "torch.compile needs a C compiler, and this machine has none")
        return
    table = context.table("bignas_nano")
    network = build_task(context, "bignas_nano", table.space.largest()).network.eval()
    # In the tests the graph is captured and run without generating code, which takes a minute on a CPU.
    compiled = torch.compile(network, backend="eager" if context.tiny else "inductor")
    batch, passes = (2, 2) if context.tiny else (256, 20)
    images = torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(context.device)
    with torch.inference_mode(), exact_float32():
        start = time.monotonic()
        difference = relative_difference(compiled(images), network(images))
        yield stated("bignas_nano max: compilation", time.monotonic() - start, "s")
        yield at_most("bignas_nano max: outputs compiled", difference, 1e-3)
        for name, run in (("not compiled", network), ("compiled", compiled)):
            rate = batch / _seconds(context, partial(run, images), passes)
            yield stated(f"bignas_nano max, batch {batch}: {name}", rate, "images/s")


def _seconds(context: Context, run: Callable[[], object], passes: int) -> float:
    """Of one pass, after some that do not count."""
    for _ in range(2):
        run()
    context.synchronise()
    start = time.perf_counter()
    for _ in range(passes):
        run()
    context.synchronise()
    return (time.perf_counter() - start) / passes
