"""What an exported file says about itself: input, outputs, names and preprocessing, as texts by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas_transfer.supernet.preprocessing import LARGEST_PIXEL, Preprocessing
from nas_transfer.tasks.deployed import Deployed


def metadata_of(
    deployed: Deployed, task: str, names: Sequence[str], preprocessing: Preprocessing, input_name: str
) -> dict[str, str]:
    """The metadata of a network; all values but ``task`` are JSON.

    Returns:
        ``task``; ``names`` of the classes or keypoints; ``first_label``, the label of the first name, where outputs are
        labels; ``input`` with name, type, range, layout, size or multiple of the sides, and padding; ``outputs``, what
        each is; ``preprocessing``, which is inside the network.
    """
    size: dict[str, object] = {} if deployed.size is None else {"size": list(deployed.size)}
    if not deployed.one_image and deployed.size is None:
        size = {"multiple_of": deployed.stride}
        size |= {} if deployed.padding is None else {"padding": deployed.padding}
    described: dict[str, object] = {
        "name": input_name, "type": "float32", "layout": "NCHW", "channels": "RGB", "range": [0, LARGEST_PIXEL],
        "batch": "one" if deployed.one_image else "any", **size,
    }  # fmt: skip
    inside: dict[str, object] = {
        "inside_the_network": True, "mean": list(preprocessing.mean), "std": list(preprocessing.std),
        "channel_order": preprocessing.channel_order, "resizes": deployed.one_image,
    }  # fmt: skip
    values: dict[str, object] = {
        "names": list(names), "input": described, "outputs": dict(deployed.meanings), "preprocessing": inside,
    }  # fmt: skip
    if deployed.first_label is not None:
        values["first_label"] = deployed.first_label
    return {"task": task} | {key: json.dumps(value) for key, value in values.items()}


def write_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add texts to an ONNX file, which onnxruntime returns as ``get_modelmeta().custom_metadata_map``."""
    if not metadata:
        return
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts of an ONNX file."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
