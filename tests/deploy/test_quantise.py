"""8-bit integers and OpenVINO's format, on a small network of convolutions."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

from nas_transfer.deploy.engines import count_convolutions, largest_difference, run_onnx, run_torch, write_engines
from nas_transfer.deploy.openvino import run_openvino, write_openvino
from nas_transfer.deploy.quantise import choose, quantise
from nas_transfer.tasks.deployed import Deployed

NAMES = {"names": json.dumps(["left", "right"])}


class TinyNet(nn.Module):
    """A body of two convolutions and a residual sum, and a head of two, of which the last one predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.block = nn.Conv2d(8, 8, 3, 1, 1)
        self.neck = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        features = torch.relu(self.stem(images / 255 - 0.5))
        return (self.head(torch.relu(self.neck(features + torch.relu(self.block(features))))),)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    module, path = TinyNet().eval(), tmp_path_factory.mktemp("tiny") / "model.onnx"
    write_engines(Deployed(module, ("logits",), (32, 32)), path, NAMES)
    return module, path


@pytest.mark.parametrize("head", [True, False])
def test_integers_give_nearly_the_same_outputs_and_predictions_stay_in_floats(
    written: tuple[nn.Module, Path], tmp_path: Path, head: bool
) -> None:
    module, path = written
    images = [255 * torch.rand(2, 3, 32, 32) for _ in range(3)]
    kept = quantise(path, tmp_path / "int8.onnx", images, body_convolutions=2, head=head)
    assert (kept.layers, kept.float_layers) == ((3, 1) if head else (2, 2))
    assert count_convolutions(path) == 4
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = [
        tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == kept.layers
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if "scale" in tensor.name}
    assert {len(scale) for name, scale in scales.items() if "weight" in name and scale.ndim} <= {8}  # per channel
    exact, rounded = run_torch(module), run_onnx(tmp_path / "int8.onnx", 1)
    assert 0 < largest_difference(exact, rounded, images) < 0.05
    about = onnxruntime.InferenceSession(tmp_path / "int8.onnx").get_modelmeta().custom_metadata_map
    assert about["names"] == NAMES["names"]
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]


def test_openvino_computes_what_torch_does(written: tuple[nn.Module, Path], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    module, path = written
    write_openvino(path, tmp_path / "tiny.xml", NAMES)
    run = run_openvino(tmp_path / "tiny.xml", 1, 1)
    assert largest_difference(run_torch(module), run, [255 * torch.rand(n, 3, 32, 32) for n in (1, 3)]) < 1e-5
    model = openvino.Core().read_model(tmp_path / "tiny.xml")
    assert model.get_rt_info(["nas_transfer", "names"]).astype(str) == NAMES["names"]
    assert np.all([path.stat().st_size > 0 for path in tmp_path.iterdir()])


def test_sizes_of_images_are_computed_in_floats() -> None:
    nodes = [
        helper.make_node("Mul", ["side", "factor"], ["size"], "size"),
        helper.make_node("Resize", ["image", "", "", "size"], ["resized"], "resize"),
        helper.make_node("Conv", ["resized", "w"], ["map"], "body"),
        helper.make_node("Mul", ["map", "gate"], ["gated"], "gate"),
        helper.make_node("Conv", ["gated", "w"], ["last"], "body_2"),
        helper.make_node("Conv", ["last", "w"], ["neck"], "neck"),
        helper.make_node("Relu", ["neck"], ["active"], "active"),
        helper.make_node("Conv", ["active", "w"], ["deltas"], "predictor"),
        helper.make_node("Mul", ["deltas", "anchors"], ["boxes"], "decode"),
    ]
    names, kept = choose(helper.make_graph(nodes, "net", [], []), 2, head=True)
    assert names == ["body", "gate", "body_2", "neck", "active"]
    assert (kept.layers, kept.float_layers) == (3, 1)
    assert choose(helper.make_graph(nodes, "net", [], []), 2, head=False)[0] == ["body", "gate", "body_2"]
