"""Networks for other programs: exported files, engines that run them, model cards.

`engines` writes torch.export and ONNX files and compares how they run, `quantise` writes 8-bit integers, `openvino`
that engine's own format. `modules` holds what is exported and how a task is scored with another engine, `timing`
measures latencies, `metadata`, `model_card` and `examples` describe the files.
"""

from nas_transfer.deploy.engines import (
    Run,
    largest_difference,
    run_onnx,
    run_torch,
    unmatched_detections,
    write_engines,
)
from nas_transfer.deploy.model_card import model_card
from nas_transfer.deploy.modules import DeployedBody, run_by

__all__ = [
    "DeployedBody",
    "Run",
    "largest_difference",
    "model_card",
    "run_by",
    "run_onnx",
    "run_torch",
    "unmatched_detections",
    "write_engines",
]
