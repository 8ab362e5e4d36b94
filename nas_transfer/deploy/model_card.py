"""The record of an export and its model card, for the people who receive the files."""

from __future__ import annotations

from collections.abc import Mapping

from nas_transfer.runs import Ancestor, Result, files
from nas_transfer.runs.texts import markdown_text
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


def model_card(
    result: Result, data: str, channels: Mapping[str, int], deployed: Deployed, raw: Deployed | None = None
) -> str:
    """Write the text of ``model_card.md``.

    Args:
        result: result of the export, whose score is that of onnxruntime.
        data: the folder of the scored images.
        channels: channels of the maps of the body, by name.
        deployed: the whole network.
        raw: the same network before a selection of its outputs, if there is one.
    """
    costs, export = result.costs, result.export
    if export is None or result.score is None:
        raise ValueError("a model card needs the result of an export, got that of another stage")
    height, width = costs.input_size
    rows, columns = export.latency_size
    resize = f".resize(({columns}, {rows}))" if not deployed.one_image else ""
    also = "" if deployed.one_image else " and `model.pt2`"
    lines = [
        f"# {markdown_text(result.task)}",
        "",
        f"- Score: {result.score_key} {100 * result.score:.2f} % on the validation split of {markdown_text(data)} "
        f"(onnxruntime; torch {100 * export.score_torch:.2f} %)",
        f"- Costs at {height}x{width}, {costs.num_classes} {costs.classes_are}: "
        f"{costs.macs['total'] / 1e6:.1f} M multiply-accumulates, {costs.params['total'] / 1e6:.2f} M parameters",
        f"- Latency of one image of {'x'.join(map(str, export.latency_size))}, "
        + ", ".join(f"{engine} {value:.1f} ms" for engine, value in export.latency_ms.items())
        + f" ({export.threads} threads of the CPU that exported it)",
        "- Difference of ONNX from torch: "
        + ", ".join(f"{name} {value:.1e} of the {_whole(name, deployed)}" for name, value in export.difference.items()),
        f"- Input: {deployed.takes}, float32, values 0-255, named `images`",
        f"- Outputs of `model.onnx`{also}: {', '.join(f'`{name}`' for name in deployed.outputs)}",
        *_raw_lines(raw),
        "- Outputs of `body.onnx` and `body.pt2`: "
        + ", ".join(f"`{name}` ({width} channels)" for name, width in channels.items()),
        "- Arch: `arch.yaml`; tensors: `weights.safetensors` (as trained; in the other files BatchNorms are folded)",
        f"- Made with seed {result.seed}, "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "",
        "## Where the weights come from",
        "",
        *(_parent(parent) for parent in result.provenance),
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


def _raw_lines(raw: Deployed | None) -> list[str]:
    """A line about the file with all boxes and scores."""
    if raw is None:
        return []
    names = ", ".join(f"`{name}`" for name in raw.outputs)
    return [
        f"- Outputs of `model_raw.onnx` and `model_raw.pt2`: {names} of all anchors, (B, N, 4) xyxy in pixels and "
        f"(B, N, classes), before the threshold and non-maximum suppression; they take {raw.takes} and resize nothing"
    ]


def _whole(name: str, deployed: Deployed) -> str:
    """What the largest difference of a file is divided by, in words."""
    return "detections" if deployed.one_image and name == files.MODEL else "largest output"


def _parent(parent: Ancestor) -> str:
    licence = parent.licence or "that of the weights it started from, and yours"
    made = parent.stage or parent.format
    made = f"{made} {parent.model}" if parent.model else made
    published = f"; {parent.published}" if parent.published else ""
    return "- " + markdown_text(f"{parent.file} ({made}{published}; licence: {licence}; sha256 {parent.sha256[:16]})")
