"""ONNX files in 8-bit integers: weights per channel, activations per tensor, calibrated on images.

Static quantisation of onnxruntime with pairs of QuantizeLinear and DequantizeLinear (Jacob et al. 2018,
arXiv:1712.05877). Convolutions and linear layers are quantised, except the last ones, whose outputs are predictions:
logits, heatmaps, coordinates of boxes. Sums, activations and pooling are quantised in the body alone, so that the
selection of boxes stays in floats.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nas_transfer.deploy.engines import INPUT, onnxruntime, quiet
from nas_transfer.deploy.metadata import read_metadata, write_metadata

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip")
IN_BODY = (
    "Add",
    "Mul",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "GlobalAveragePool",
    "MaxPool",
    "AveragePool",
)
MIXING = ("Add", "Concat", "RoiAlign", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
PASSING = ("Relu", "Clip", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "Flatten", "Identity")
"""What stands between a layer and those that read its features: what mixes features, and what passes them on."""
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
"""Flags of processors that multiply and add bytes in one instruction: of Intel and AMD, and of ARM."""


@dataclass(frozen=True)
class Quantised:
    """What was quantised.

    Attributes:
        layers: convolutions and linear layers in integers.
        float_layers: those that stay in floats.
    """

    layers: int
    float_layers: int


def byte_instructions() -> tuple[str, ...]:
    """The instructions for bytes that this processor has; empty where they are unknown."""
    cpus = Path("/proc/cpuinfo")
    if not cpus.is_file():
        return ("asimddp",) if platform.machine().lower() == "arm64" else ()
    listed = re.search(r"^(?:flags|Features)\s*: (.*)$", cpus.read_text(), re.M)
    flags = set(listed.group(1).split()) if listed else set()
    return tuple(name for name in INSTRUCTIONS if name in flags)


def quantise(source: Path, target: Path, images: Sequence[Tensor], *, body_convolutions: int, head: bool) -> Quantised:
    """Write an ONNX file in 8-bit integers.

    Without instructions for bytes, weights have 7 bits: pairs of products of 8 bits overflow 16 bits there.

    Args:
        source, target: files; the metadata of the first are kept.
        images: float32 (B, 3, H, W) in 0-255, on which the ranges of the activations are measured.
        body_convolutions: the number of convolutions of the body, which are the first of the network.
        head: whether the layers behind the body are quantised too, except those that predict.
    """
    onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f"{target.stem}.prepared.onnx")
    try:
        with quiet(), _no_warnings():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            nodes, kept = _chosen(prepared, body_convolutions, head=head)
            quantize_static(
                str(prepared),
                str(target),
                _Images(images),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=nodes,
                op_types_to_quantize=[*WEIGHTED, *ACTIVATIONS, *IN_BODY],
                per_channel=True,
                reduce_range=not byte_instructions(),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
    finally:
        prepared.unlink(missing_ok=True)
    write_metadata(target, read_metadata(source))
    return kept


def _chosen(path: Path, body_convolutions: int, *, head: bool) -> tuple[list[str], Quantised]:
    """The names of the nodes to quantise; nodes without a name get one."""
    import onnx

    model = onnx.load(path)
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}_{node.op_type}"
    onnx.save(model, path)
    return choose(model.graph, body_convolutions, head=head)


def choose(graph: onnx.GraphProto, body_convolutions: int, *, head: bool) -> tuple[list[str], Quantised]:
    """The names of the nodes of a graph to quantise, and how many layers that are."""
    convolutions = [number for number, node in enumerate(graph.node) if node.op_type == "Conv"]
    end = convolutions[body_convolutions - 1]
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    features: set[str] = set()  # what quantised nodes give; sizes of images, which are computed beside, are none
    names, layers, floats = [], 0, 0
    for number, node in enumerate(graph.node):
        in_body = number <= end
        if node.op_type in WEIGHTED:
            taken = in_body or (head and _gives_features(node, readers))
            layers, floats = layers + taken, floats + (not taken)
        else:
            mixes = in_body and node.op_type in IN_BODY
            taken = (mixes or node.op_type in ACTIVATIONS) and not features.isdisjoint(node.input)
        if taken:
            names.append(node.name)
            features |= set(node.output)
    return names, Quantised(layers, floats)


def _gives_features(layer: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> bool:
    """Whether other layers read what a layer gives, activations aside; a layer that predicts has none behind it."""
    found = [node for name in layer.output for node in readers.get(name, ())]
    seen: set[str] = set()
    while found:
        node = found.pop()
        if node.op_type in WEIGHTED or node.op_type in MIXING:
            return True
        if node.op_type in PASSING and node.name not in seen:
            seen.add(node.name)
            found += [reader for name in node.output for reader in readers.get(name, ())]
    return False


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence onnxruntime's remarks on single weights, which it makes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Images:
    """Images as onnxruntime's calibration reads them."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._images: Iterator[Tensor] = iter(images)

    def get_next(self) -> Mapping[str, npt.NDArray[np.float32]] | None:
        """The inputs of the next pass; None after the last."""
        batch = next(self._images, None)
        return None if batch is None else {INPUT: batch.cpu().numpy()}
