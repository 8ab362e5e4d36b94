"""Detectors without non-maximum suppression: the boxes that torchvision selects from, in ONNX for any batch."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from nas_transfer.deploy.engines import largest_difference, run_onnx, run_torch, write_engines
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.tasks.detection import DetectionTask
from tests.conftest import nightly_but
from tests.tasks import test_detector_genes, test_fcos, test_ssdlite
from tests.tasks.test_detector_genes import with_statistics
from tests.tasks.test_fcos import TABLE

IMAGES = torch.randint(256, (4, 3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
MAKERS = {"fcos": test_fcos.detector, "ssdlite": test_ssdlite.detector}


def subnet(name: str) -> DetectionTask:
    task = with_statistics(MAKERS[name](TABLE.space.smallest(), genes=False)).eval()
    fold_batch_norms(task.network)
    return task


def selected(boxes: Tensor, scores: Tensor, threshold: float, overlap: float, count: int) -> tuple[Tensor, ...]:
    """The usual selection: a threshold, non-maximum suppression for each class, the best."""
    places, labels = (scores > threshold).nonzero().unbind(1)
    boxes, scores = boxes[places], scores[places, labels]
    kept = batched_nms(boxes, scores, labels, overlap)[:count]
    return boxes[kept], scores[kept], labels[kept] + 1


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_selection_of_the_raw_boxes_gives_torchvisions_detections(name: str) -> None:
    task = subnet(name)
    deployed = task.deployed_raw()
    assert deployed is not None
    assert deployed.size == (64, 96)
    network = task.network
    network.topk_candidates = 10**6  # torchvision's bound before the suppression
    with torch.no_grad():
        boxes, scores = deployed.module(IMAGES)
        expected = network([*IMAGES])
    assert boxes.shape[:2] == scores.shape[:2]
    assert scores.shape[2] == 3
    for number, wanted in enumerate(expected):
        found = selected(boxes[number], scores[number], network.score_thresh, network.nms_thresh, 10)
        assert len(wanted["boxes"]) > 0
        for value, key in zip(found, ("boxes", "scores", "labels"), strict=True):
            torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_but(MAKERS, "ssdlite"))
def test_onnx_gives_the_raw_boxes_of_one_and_of_four_images(name: str, tmp_path: Path) -> None:
    deployed = subnet(name).deployed_raw()
    assert deployed is not None
    write_engines(deployed, tmp_path / "model_raw", {"names": "a, b, c"})
    engines = run_torch(deployed.module.eval()), run_onnx(tmp_path / "model_raw.onnx", 1)
    assert largest_difference(*engines, [IMAGES[:1], IMAGES]) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model_raw.onnx"))
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores"]
    assert {output.type for output in session.get_outputs()} == {"tensor(float)"}
    assert session.get_modelmeta().custom_metadata_map["names"] == "a, b, c"
    program = torch.export.load(tmp_path / "model_raw.pt2").module()
    assert largest_difference(run_torch(deployed.module), run_torch(program), [IMAGES]) < 1e-5


def test_a_detector_of_two_stages_has_no_raw_boxes() -> None:
    build: Callable[..., DetectionTask] = test_detector_genes.detector
    task = build()
    assert task.extract(task.space.smallest()).deployed_raw() is None
