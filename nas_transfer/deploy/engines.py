"""A network for other programs: torch.export and ONNX files, held against the network that they come from."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.tasks.deployment import TOP_STRIDE, Deployed, Run

INPUT = "images"
EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch._export", "torch.export")
"""Loggers with notices on which no user can act."""
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-3
"""By how much equal detections may differ: their boxes as a share of the image's longer side, their scores."""
MOST_STRIDES = 256
"""The largest side of an exported graph's input, in multiples of `TOP_STRIDE`: 8192 pixels."""


def onnxruntime() -> ModuleType:
    """The package; ConfigError without it."""
    try:
        import onnx  # noqa: F401  what torch's exporter needs
        import onnxruntime as package
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"expected onnx, onnxscript and onnxruntime for an export, got none of {error.name}: "
            "pip install onnx onnxscript onnxruntime safetensors"
        ) from error
    return package


def program_of(deployed: Deployed) -> torch.export.ExportedProgram:
    """The module as a torch.export program of any batch, and of any H and W in multiples of 32 or of its one size."""
    _assume_whole_strides(deployed)
    names = {2: "rows", 3: "columns"} if deployed.size is None else {}
    sides = {place: TOP_STRIDE * torch.export.Dim(name, min=1, max=MOST_STRIDES) for place, name in names.items()}
    with quiet():
        return torch.export.export(
            deployed.module.eval(), (_example(deployed),), dynamic_shapes=({0: torch.export.Dim("batch"), **sides},)
        )


def write_engines(deployed: Deployed, path: Path) -> None:
    """Write ``<path>.onnx``, and ``<path>.pt2`` (torch.export) but for a detector, which that cannot do.

    A detector's ONNX file is by torch's older exporter: torchvision's loops depend on what is found.
    """
    example, outputs, onnx = _example(deployed), list(deployed.outputs), str(path.with_suffix(".onnx"))
    if not deployed.one_image:
        program = program_of(deployed)
        with quiet():
            torch.onnx.export(
                program, (example,), onnx, dynamo=True, external_data=False, verbose=False, input_names=[INPUT],
                output_names=outputs,
            )  # fmt: skip
            torch.export.save(program, path.with_suffix(".pt2"))
        return
    _assume_whole_strides(deployed)  # a detector pads its images to multiples of 32 by itself
    with quiet():
        torch.onnx.export(
            deployed.module.eval(), (example,), onnx, dynamo=False, opset_version=17, input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={INPUT: {2: "height", 3: "width"}} | {name: {0: "found"} for name in outputs},
        )  # fmt: skip


def _example(deployed: Deployed) -> Tensor:
    """Images to trace with: a batch or a side of 1 would be taken for a constant."""
    return torch.zeros(1 if deployed.one_image else 2, 3, *(deployed.size or (2 * TOP_STRIDE, 3 * TOP_STRIDE)))


def run_onnx(path: Path, threads: int) -> Run:
    """An ONNX file as a function of images, on the CPU."""
    package = onnxruntime()
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in session.run(None, {INPUT: images.cpu().numpy()}))

    return run


def run_torch(module: nn.Module) -> Run:
    """A module as a function of images, without gradients."""

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return module(images)

    return run


def largest_difference(one: Run, other: Run, batches: Sequence[Tensor]) -> float:
    """The largest difference of two engines' outputs, as a share of each output's largest value.

    Raises:
        ConfigError: nothing to compare them on.
        RunError: outputs of different shapes, or with values that are no numbers.
    """
    worst = 0.0
    for first, second in _pairs(one, other, batches):
        if first.shape != second.shape:
            raise RunError(f"expected outputs of shape {tuple(first.shape)}, got {tuple(second.shape)}")
        scale = max(float(first.abs().max()), float(second.abs().max())) if first.numel() else 0.0
        if scale > 0:
            worst = max(worst, float((first - second).abs().max()) / scale)
    return worst


def unmatched_share(one: Run, other: Run, images: Sequence[Tensor]) -> float:
    """The share of two detectors' detections that the other one does not make, whatever their order.

    Equal are detections of one label whose boxes differ by at most `BOX_TOLERANCE` of the image's longer side and their
    scores by at most `SCORE_TOLERANCE`. The engines give boxes (N, 4), labels (N,) and scores (N,) first.

    Raises:
        ConfigError: nothing to compare them on.
        RunError: values that are no numbers.
    """
    found, alone = 0, 0
    for image in images:
        boxes, labels, scores = list(_pairs(one, other, [image]))[:3]
        apart = (boxes[0][:, None] - boxes[1][None]).abs().amax(2) / max(image.shape[-2:])
        equal = (apart <= BOX_TOLERANCE) & (labels[0][:, None] == labels[1][None])
        equal &= (scores[0][:, None] - scores[1][None]).abs() <= SCORE_TOLERANCE
        found += sum(map(len, scores))
        alone += int((~equal.any(1)).sum()) + int((~equal.any(0)).sum())
    return alone / max(1, found)


def _pairs(one: Run, other: Run, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each output of both engines for each batch."""
    if not batches:
        raise ConfigError("expected images to compare engines on, got none: set stage.compared_images above 0")
    for images in batches:
        for first, second in zip(one(images), other(images), strict=True):
            if not (first.isfinite().all() and second.isfinite().all()):
                raise RunError("expected outputs that are numbers, got infinite ones or none")
            yield first, second


def _assume_whole_strides(deployed: Deployed) -> None:
    """Let layers whose padding depends on the input's size take that of multiples of their stride."""
    for module in deployed.module.modules():
        if hasattr(module, "whole_strides"):
            module.whole_strides = deployed.size is None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notices."""
    levels = {name: logging.getLogger(name).level for name in EXPORTERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
