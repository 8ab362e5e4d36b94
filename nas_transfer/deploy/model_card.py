"""The record of an export and its model card, for the people who receive the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas_transfer.deploy.examples import TORCH_EXAMPLE, onnx_example
from nas_transfer.runs import Ancestor, ExportSummary, Result, files
from nas_transfer.runs.texts import markdown_text
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.tasks.deployed import Deployed


def model_card(
    result: Result,
    data: str,
    channels: Mapping[str, int],
    deployed: Deployed,
    raw: Deployed | None = None,
    *,
    names: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> str:
    """Write the text of ``model_card.md``.

    Args:
        result: result of the export, whose score is that of onnxruntime.
        data: the folder of the scored images.
        channels: channels of the maps of the body, by name.
        deployed: the whole network.
        raw: the same network before a selection of its outputs, if there is one.
        names: names of the classes or keypoints.
        preprocessing: what the network does with pixels by itself.
    """
    costs, export = result.costs, result.export
    if export is None or result.score is None:
        raise ValueError("a model card needs the result of an export, got that of another stage")
    height, width = costs.input_size
    also = "" if deployed.one_image else " and `model.pt2`"
    lines = [
        f"# {markdown_text(result.task)}",
        "",
        f"- Score: {result.score_key} {100 * result.score:.2f} % on the validation split of {markdown_text(data)} "
        f"(onnxruntime; torch {100 * export.score_torch:.2f} %)",
        f"- Costs at {height}x{width}, {costs.num_classes} {costs.classes_are}: "
        f"{costs.macs['total'] / 1e6:.1f} M multiply-accumulates, {costs.params['total'] / 1e6:.2f} M parameters",
        *_latency_lines(export),
        "- Difference of the files from torch: "
        + ", ".join(f"{name} {value:.1e} of the {_whole(name, deployed)}" for name, value in export.difference.items()),
        *_int8_lines(export),
        *_names_lines(names, costs.classes_are, deployed),
        f"- Input: {deployed.takes}, float32, RGB, values 0-255, named `images`{_padding(deployed)}",
        *_preprocessing_lines(preprocessing),
        f"- Outputs of `model.onnx`{also}: {_outputs(deployed)}",
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
        "onnxruntime, NumPy and Pillow are all that this needs:",
        "",
        "```python",
        onnx_example(deployed, export.latency_size).rstrip(),
        "```",
        "",
        "The body alone, for a detector of torchvision or any other network that takes feature maps:",
        "",
        "```python",
        TORCH_EXAMPLE.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _latency_lines(export: ExportSummary) -> list[str]:
    """The latencies, and a warning where other processes disturbed them."""

    def told(engine: str, value: float) -> str:
        low, high = export.latency_range.get(engine, (value, value))
        cpu = f"; {export.cpu_ms[engine]:.1f} ms of CPU" if engine in export.cpu_ms else ""
        return f"{engine} {value:.1f} ms ({low:.1f} to {high:.1f}{cpu})"

    size = "x".join(map(str, export.latency_size))
    busy = "" if export.busy is None else f"; other processes took {100 * export.busy:.0f} % of its time"
    return [
        f"- Latency of one image of {size}, median and quartiles: "
        + ", ".join(told(*item) for item in export.latency_ms.items())
        + f" ({export.threads} threads of the CPU that exported it{busy})"
    ]


def _int8_lines(export: ExportSummary) -> list[str]:
    int8 = export.int8
    if int8 is None:
        return []
    kept = f", {int8.float_layers} in floats" if int8.float_layers else ""
    return [
        f"- `{files.MODEL_INT8}`: the same network in 8-bit integers ({int8.layers} layers{kept}), calibrated on "
        f"{int8.images} images of train: score {100 * int8.score:.2f} % ({-100 * int8.loss + 0:+.2f} points), "
        f"{int8.speedup:.2f} times as fast; instructions for bytes of that CPU: "
        + (", ".join(int8.instructions) or "none")
    ]


def _names_lines(names: Sequence[str], classes_are: str, deployed: Deployed) -> list[str]:
    if not names:
        return []
    first = deployed.first_label or 0
    listed = ", ".join(f"{number} {markdown_text(name)}" for number, name in enumerate(names, start=first))
    return [f"- Names of the {classes_are}, also `names` in the metadata of the ONNX files: {listed}"]


def _preprocessing_lines(preprocessing: Preprocessing | None) -> list[str]:
    if preprocessing is None:
        return []
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return [
        f"- Inside the network: channels in the order {preprocessing.channel_order}, minus {mean}, divided by {std}"
    ]


def _padding(deployed: Deployed) -> str:
    if deployed.padding is None:
        return ""
    return f"; pad other images on the right and at the bottom with {deployed.padding}"


def _outputs(deployed: Deployed) -> str:
    return "; ".join(f"`{name}` {deployed.meanings.get(name, '')}".rstrip() for name in deployed.outputs)


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
