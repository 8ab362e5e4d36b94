"""torchvision's detectors as starts: its own modules with random weights compute what ours do after an import."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from nas_transfer.errors import WeightsError
from nas_transfer.tasks.checkpoint import inherit, load_checkpoint
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.detector import DetectorSize
from nas_transfer.tasks.fcos import FcosSize
from nas_transfer.tasks.instance_segmentation import InstanceSegmentationTask, MaskDetectorSize
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet

TABLE = load_supernet("resnet50")
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()  # rounding aside
RCNN = DetectorSize(
    fpn_levels=5, fpn_channels=256, box_head_channels=1024, anchor_sizes=(32, 64, 128, 256, 512), min_size=64,
    max_size=96, proposals_train=50, proposals_test=50, rpn_batch=32, box_batch=16, detections=10,
)  # fmt: skip
FCOS = FcosSize(
    fpn_levels=5, fpn_channels=256, tower_convolutions=4, group_channels=8, min_size=64, max_size=96,
    score_threshold=0.05, detections=10,
)  # fmt: skip
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
"""Ids up to 90 that no image of COCO has."""
KEPT = [number for number in range(1, 91) if number not in COCO_GAPS]


def stock(build: Callable[..., nn.Module], folder: Path) -> tuple[nn.Module, Path]:
    """torchvision's detector with random weights and statistics, and its file."""
    torch.manual_seed(0)
    network = build(weights=None, weights_backbone=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    file = folder / "detector.pth"
    torch.save(network.state_dict(), file)
    return network.double(), file


def imported(file: Path, kind: type[DetectionTask], sizes: DetectorSize | FcosSize) -> DetectionTask:
    """Our detector after the import of a file."""
    task = kind(TaskSettings(TABLE, TABLE.space.largest(), 80), detector=sizes)
    assert inherit(task, load_checkpoint(str(file), TABLE)) == []
    return task.double().eval()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.slow
@torch.no_grad()
def test_fcos_has_the_same_pyramid_classes_and_boxes(tmp_path: Path) -> None:
    theirs, file = stock(fcos_resnet50_fpn, tmp_path)
    ours = imported(file, DetectionTask, FCOS).network
    levels, wanted_levels = (list(network.backbone(IMAGES).values()) for network in (ours, theirs))
    for found, wanted in zip(levels, wanted_levels, strict=True):
        close(found, wanted)
    outputs, expected = ours.head(levels), theirs.head(wanted_levels)
    close(outputs["cls_logits"], expected["cls_logits"][..., KEPT])
    for name in ("bbox_regression", "bbox_ctrness"):
        close(outputs[name], expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
@torch.no_grad()
def test_rcnns_have_the_same_pyramid_proposals_classes_boxes_and_masks(tmp_path: Path, masks: bool) -> None:
    theirs, file = stock(maskrcnn_resnet50_fpn if masks else fasterrcnn_resnet50_fpn, tmp_path)
    sizes = MaskDetectorSize(**vars(RCNN), mask_channels=256, mask_convolutions=4) if masks else RCNN
    ours = imported(file, InstanceSegmentationTask if masks else DetectionTask, sizes).network
    levels, wanted_levels = (network.backbone(IMAGES) for network in (ours, theirs))
    for name, wanted in wanted_levels.items():
        close(levels[name], wanted)
    anchors = theirs.rpn.anchor_generator(ImageList(IMAGES, [(64, 96)]), list(wanted_levels.values()))
    assert torch.equal(ours.rpn.anchor_generator(ImageList(IMAGES, [(64, 96)]), list(levels.values()))[0], anchors[0])
    for found, wanted in zip(
        concat_box_prediction_layers(*ours.rpn.head(list(levels.values()))),
        concat_box_prediction_layers(*theirs.rpn.head(list(wanted_levels.values()))),
        strict=True,
    ):
        close(found, wanted)
    boxes = [torch.tensor([[3.0, 5.0, 60.0, 50.0], [20.0, 8.0, 90.0, 60.0]]).double()]
    heads, wanted_heads = ours.roi_heads, theirs.roi_heads
    features, wanted = (
        one.box_head(one.box_roi_pool(maps, boxes, [(64, 96)]))
        for one, maps in ((heads, levels), (wanted_heads, wanted_levels))
    )
    close(features, wanted)
    (classes, offsets), (all_classes, all_offsets) = heads.box_predictor(features), wanted_heads.box_predictor(wanted)
    close(classes, all_classes[:, [0, *KEPT]])
    close(offsets.view(2, -1, 4), all_offsets.view(2, -1, 4)[:, [0, *KEPT]])
    if masks:
        found, wanted = (
            one.mask_predictor(one.mask_head(one.mask_roi_pool(maps, boxes, [(64, 96)])))
            for one, maps in ((heads, levels), (wanted_heads, wanted_levels))
        )
        close(found, wanted[:, [0, *KEPT]])


@pytest.mark.slow
def test_another_number_of_classes_keeps_all_but_the_rows_of_classes(tmp_path: Path) -> None:
    _, file = stock(fcos_resnet50_fpn, tmp_path)
    task = DetectionTask(TaskSettings(TABLE, TABLE.space.largest(), 3), detector=FCOS)
    assert sorted(inherit(task, load_checkpoint(str(file), TABLE))) == [
        "head.classification_head.cls_logits.bias", "head.classification_head.cls_logits.weight",
    ]  # fmt: skip
    with pytest.raises(WeightsError, match=r"must have the shape \(32, "):
        inherit(
            DetectionTask(task.settings, detector=replace(FCOS, fpn_channels=32)), load_checkpoint(str(file), TABLE)
        )
    with pytest.raises(WeightsError, match="choose supernet=resnet50"):
        load_checkpoint(str(file), load_supernet("bignas_nano"))


@pytest.mark.slow
def test_ssdlites_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    _, file = stock(ssdlite320_mobilenet_v3_large, tmp_path)
    with pytest.raises(WeightsError, match="expansion layer and a narrower tail"):
        load_checkpoint(str(file), load_supernet("mobilenet_v3_large"))


@pytest.mark.slow
def test_names_of_older_versions_are_known(tmp_path: Path) -> None:
    theirs, file = stock(fasterrcnn_resnet50_fpn, tmp_path)
    state = theirs.state_dict()
    old = {}
    for name, tensor in state.items():
        renamed = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if ".fpn." in name else name
        old[renamed.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    torch.save(old, tmp_path / "old.pth")
    new, before = (load_checkpoint(str(path), TABLE) for path in (file, tmp_path / "old.pth"))
    assert sorted(new.rest) == sorted(before.rest)
    assert all(torch.equal(new.rest[name], before.rest[name]) for name in new.rest)
