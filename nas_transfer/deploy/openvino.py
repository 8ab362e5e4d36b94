"""The network in OpenVINO's own format, converted from the ONNX file by OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from nas_transfer.deploy.engines import INPUT, Run
from nas_transfer.errors import ConfigError


def openvino() -> ModuleType:
    """Import OpenVINO; ConfigError where it is not installed."""
    try:
        import openvino as package
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"stage.openvino=true needs {error.name}: pip install 'nas_transfer[export,openvino]'"
        ) from error
    return package


def write_openvino(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Convert an ONNX file to ``<target>.xml`` and ``<target>.bin``, in float32.

    Args:
        source: the ONNX file.
        target: the file that ends in ``.xml``.
        metadata: texts by name, which the file holds as ``model.get_rt_info(["nas_transfer", name])``.
    """
    package = openvino()
    model = package.convert_model(str(source))
    for name, text in metadata.items():
        model.set_rt_info(text, ["nas_transfer", name])
    package.save_model(model, str(target), compress_to_fp16=False)


def run_openvino(path: Path, threads: int, outputs: int) -> Run:
    """Load a file of OpenVINO as a function of images, in float32 on the CPU.

    Args:
        path: ends in ``.xml``.
        threads: of the processor.
        outputs: the number of outputs.
    """
    package = openvino()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = package.Core().compile_model(str(path), "CPU", options)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        results = compiled({INPUT: images.cpu().numpy()})
        return tuple(torch.from_numpy(results[index].copy()) for index in range(outputs))

    return run
