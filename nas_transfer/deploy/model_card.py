"""The record of an export and its model card, for the people who receive the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nas_transfer.runs.result import Result
from nas_transfer.tasks.checkpoint import Parent
from nas_transfer.tasks.deployed import Deployed

ONNX_EXAMPLE = """\
import numpy as np, onnxruntime
from PIL import Image

image = Image.open("image.jpg").convert("RGB"){resize}
pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]  # 0-255; the network normalises by itself
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, {{"images": pixels}})))
for name, values in outputs.items():
    print(name, values.shape)
"""

TORCH_EXAMPLE = """\
import torch

body = torch.export.unflatten(torch.export.load("body.pt2"))  # a torch.nn.Module; its weights can be trained further
maps = body(torch.zeros(1, 3, 64, 96))  # RGB, 0-255, H and W in multiples of 32
for stride, features in zip((4, 8, 16, 32), maps):
    print(stride, tuple(features.shape))
"""


@dataclass(frozen=True)
class ExportRecord:
    """What an export measured.

    Attributes:
        difference: of each ONNX file from torch: see `largest_difference` and `unmatched_share`.
        score_torch: the score of the network run by torch.
        latency_ms: the median of one image on the CPU, by engine.
        latency_size: (H, W) of this image.
        threads: of the CPU.
        provenance: the files that the weights descend from, oldest first.
    """

    difference: dict[str, float]
    score_torch: float
    latency_ms: dict[str, float]
    latency_size: list[int]
    threads: int
    provenance: list[Parent]

    def to_dict(self) -> dict[str, object]:
        """The plain mapping that ``result.json`` holds."""
        return asdict(self)


def model_card(result: Result, export: ExportRecord, data: str, channels: Mapping[str, int], deployed: Deployed) -> str:
    """Write ``model_card.md``.

    Args:
        result: of the export, whose score is that of onnxruntime.
        export: what was measured.
        data: the folder of the scored images.
        channels: of the maps of the body, by name.
        deployed: the whole network.
    """
    costs = result.costs
    score = 0.0 if result.score is None else result.score
    height, width = costs["input_size"]
    resize = f".resize(({width}, {height}))" if not deployed.one_image else ""
    also = "" if deployed.one_image else " and `model.pt2`"
    lines = [
        f"# {result.task}",
        "",
        f"- Score: {result.score_key} {100 * score:.2f} % on the validation split of {data} "
        f"(onnxruntime; torch {100 * export.score_torch:.2f} %)",
        f"- Costs at {height}x{width}, {costs['num_classes']} {costs['classes_are']}: "
        f"{costs['macs']['total'] / 1e6:.1f} M multiply-accumulates, {costs['params']['total'] / 1e6:.2f} M parameters",
        f"- Latency of one image of {'x'.join(map(str, export.latency_size))}, "
        + ", ".join(f"{engine} {value:.1f} ms" for engine, value in export.latency_ms.items())
        + f" ({export.threads} threads of the CPU that exported it)",
        "- Difference of ONNX from torch: "
        + ", ".join(f"{name} {value:.1e} of the {_whole(name, deployed)}" for name, value in export.difference.items()),
        f"- Input: {deployed.takes}, float32, values 0-255, named `images`",
        f"- Outputs of `model.onnx`{also}: {', '.join(f'`{name}`' for name in deployed.outputs)}",
        "- Outputs of `body.onnx` and `body.pt2`: "
        + ", ".join(f"`{name}` ({width} channels)" for name, width in channels.items()),
        "- Arch: `arch.yaml`; tensors: `weights.safetensors` (as trained; in the other files BatchNorms are folded)",
        f"- Made with seed {result.seed}, "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "",
        "## Where the weights come from",
        "",
        *(_parent(parent) for parent in export.provenance),
        "",
        "## How to load it",
        "",
        "```python",
        ONNX_EXAMPLE.format(resize=resize).rstrip(),
        "```",
        "",
        "The body alone, for a detector of torchvision or any other network that takes feature maps:",
        "",
        "```python",
        TORCH_EXAMPLE.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _whole(name: str, deployed: Deployed) -> str:
    """What the difference of a file is a share of."""
    return "detections" if deployed.one_image and name.startswith("model") else "largest output"


def _parent(parent: Parent) -> str:
    licence = parent["licence"] or "that of the weights it started from, and yours"
    made = parent["stage"] or parent["format"]
    return f"- {parent['file']} ({made}; licence: {licence}; sha256 {parent['sha256'][:16]})"
