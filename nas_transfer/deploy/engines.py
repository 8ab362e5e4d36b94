"""A network for other programs: torch.export and ONNX files, and how they compare with the original network."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from nas_transfer.deploy.metadata import write_metadata
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.tasks.deployed import Deployed

INPUT = "images"
EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch._export", "torch.export")
"""Loggers with notices that no user can act on."""
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-3
"""By how much two equal detections may differ: boxes as a share of the longer side of the image, and scores."""
ENGINE_NAMES = ("the first engine", "the second engine")
LARGEST_SIDE = 8192
"""The largest side of the input of an exported graph, pixels."""

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""An engine: maps raw images float32 (B, 3, H, W) to the outputs of a deployed module."""


def onnxruntime() -> ModuleType:
    """Import onnxruntime.

    Raises:
        ConfigError: a package of the extra [export] is not installed.
    """
    try:
        import onnx  # noqa: F401  what torch's exporter needs
        import onnxruntime as package
        import onnxscript  # noqa: F401
        import safetensors  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"stage=export needs {error.name}: pip install 'nas_transfer[export]'") from error
    return package


def program_of(deployed: Deployed) -> torch.export.ExportedProgram:
    """Export a module as a torch.export program for any batch, and for its size or any multiples of its stride."""
    _assume_whole_strides(deployed)
    names = {2: "rows", 3: "columns"} if deployed.size is None else {}
    most = LARGEST_SIDE // deployed.stride
    sides = {axis: deployed.stride * torch.export.Dim(name, min=1, max=most) for axis, name in names.items()}
    with quiet():
        return torch.export.export(
            deployed.module.eval(), (_example(deployed),), dynamic_shapes=({0: torch.export.Dim("batch"), **sides},)
        )


def write_engines(deployed: Deployed, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``<path>.onnx`` and, except for a detector, ``<path>.pt2`` (torch.export).

    torch.export cannot trace the loops of torchvision's detectors, whose length depends on the detections. The ONNX
    file of a detector is written by the older exporter of torch.

    Args:
        deployed: the network.
        path: of the files, whose endings are replaced.
        metadata: texts by name that the files hold beside the network.
    """
    example, outputs, onnx = _example(deployed), list(deployed.outputs), str(path.with_suffix(".onnx"))
    if not deployed.one_image:
        program = program_of(deployed)
        with quiet():
            torch.onnx.export(
                program, (example,), onnx, dynamo=True, external_data=False, verbose=False, input_names=[INPUT],
                output_names=outputs,
            )  # fmt: skip
            torch.export.save(program, path.with_suffix(".pt2"), extra_files=dict(metadata or {}))
        write_metadata(Path(onnx), metadata or {})
        return
    _assume_whole_strides(deployed)  # a detector pads its images to multiples of 32 by itself
    with quiet():
        torch.onnx.export(
            deployed.module.eval(), (example,), onnx, dynamo=False, opset_version=17, input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={INPUT: {2: "height", 3: "width"}} | {name: {0: "detections"} for name in outputs},
        )  # fmt: skip
    write_metadata(Path(onnx), metadata or {})


def _example(deployed: Deployed) -> Tensor:
    """Images to trace with. A batch or a side of 1 would be traced as a constant."""
    return torch.zeros(
        1 if deployed.one_image else 2, 3, *(deployed.size or (2 * deployed.stride, 3 * deployed.stride))
    )


def run_onnx(path: Path, threads: int) -> Run:
    """Load an ONNX file as a function of images, on the CPU."""
    package = onnxruntime()
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in session.run(None, {INPUT: images.cpu().numpy()}))

    return run


def run_program(path: Path) -> Run:
    """Load a torch.export file as a function of images, on the CPU."""
    return run_torch(torch.export.load(path).module())


def run_torch(module: nn.Module) -> Run:
    """Wrap a module as a function of images, without gradients."""

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return module(images)

    return run


def largest_difference(one: Run, other: Run, batches: Sequence[Tensor], names: tuple[str, str] = ENGINE_NAMES) -> float:
    """The largest difference between the outputs of two engines, as a share of the largest value of each output.

    Args:
        one, other: the engines.
        batches: images float32 (B, 3, H, W).
        names: names of the engines, for messages.

    Raises:
        ConfigError: there are no images to compare them on.
        RunError: outputs of different shapes, or values that are infinite or NaN.
    """
    worst = 0.0
    for first, second in _pairs(one, other, batches, names):
        if first.shape != second.shape:
            raise RunError(f"{names[1]} must give outputs of the shape {tuple(first.shape)}, got {tuple(second.shape)}")
        scale = max(float(first.abs().max()), float(second.abs().max())) if first.numel() else 0.0
        if scale > 0:
            worst = max(worst, float((first - second).abs().max()) / scale)
    return worst


def unmatched_detections(
    one: Run, other: Run, images: Sequence[Tensor], names: tuple[str, str] = ENGINE_NAMES
) -> tuple[int, int]:
    """How many detections of two engines the other engine does not make, and how many there are in both.

    Two detections are equal if they have the same label, their boxes differ by at most `BOX_TOLERANCE` of the longer
    side of the image, and their scores by at most `SCORE_TOLERANCE`. The first three outputs of the engines are boxes
    (N, 4), labels (N,) and scores (N,).

    Args:
        one, other: the engines.
        images: float32 (1, 3, H, W).
        names: names of the engines, for messages.

    Raises:
        ConfigError: there are no images to compare them on.
        RunError: values that are infinite or NaN.
    """
    total, unmatched = 0, 0
    for image in images:
        boxes, labels, scores = list(_pairs(one, other, [image], names))[:3]
        apart = (boxes[0][:, None] - boxes[1][None]).abs().amax(2) / max(image.shape[-2:])
        equal = (apart <= BOX_TOLERANCE) & (labels[0][:, None] == labels[1][None])
        equal &= (scores[0][:, None] - scores[1][None]).abs() <= SCORE_TOLERANCE
        total += sum(map(len, scores))
        unmatched += int((~equal.any(1)).sum()) + int((~equal.any(0)).sum())
    return unmatched, total


def count_convolutions(path: Path) -> int:
    """The number of convolutions in an ONNX file."""
    import onnx

    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


def _pairs(one: Run, other: Run, batches: Sequence[Tensor], names: tuple[str, str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each output of both engines for each batch."""
    if not batches:
        raise ConfigError("comparing engines needs images, got none: set stage.compared_images above 0")
    for images in batches:
        for first, second in zip(one(images), other(images), strict=True):
            for name, output in zip(names, (first, second), strict=True):
                if not output.isfinite().all():
                    raise RunError(
                        f"{name} must give finite outputs, got infinity or NaN: check the weights with "
                        "stage=evaluate, and train again with a lower task.recipe.lr"
                    )
            yield first, second


def _assume_whole_strides(deployed: Deployed) -> None:
    """Fix the padding of layers that depends on the input size, where all inputs are multiples of the stride."""
    for module in deployed.module.modules():
        if hasattr(module, "whole_strides"):
            module.whole_strides = deployed.size is None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the notices of the exporters."""
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
