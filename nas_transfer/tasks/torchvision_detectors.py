"""torchvision's detectors on a ResNet as weights: body, neck and heads of Faster R-CNN, Mask R-CNN and FCOS.

torchvision's classes are the ids of COCO up to 90, ten of which no image has, and the background. The rows of the 80
classes of COCO are kept, in the order of their ids, as the data has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from nas_transfer.errors import WeightsError
from nas_transfer.runs import TaskKind
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.resnet import ResNetTable
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.fcos import FINEST
from nas_transfer.tasks.instance_segmentation import InstanceSegmentationTask

LICENCE = "BSD-3-Clause; trained on ImageNet and COCO, whose images are for research"
CATEGORIES: Sequence[str] = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""Names by COCO's id; that of the background first, and ``N/A`` for ids without images."""
IDS = tuple(index for index, name in enumerate(CATEGORIES) if index and name != "N/A")
"""The 80 ids of COCO's classes."""
BODY, FPN, COUNTER = "backbone.body.", "backbone.fpn.", "num_batches_tracked"
SSDLITE = "head.classification_head.module_list.0.0.0.weight"


@dataclass(frozen=True)
class DetectorLayout:
    """The tensors of one of torchvision's detectors.

    Attributes:
        name: of the layout.
        mark: a tensor that this detector has and those behind it in `LAYOUTS` do not.
        kind: the kind of task that the heads fit.
        background: whether the first class is the background.
        per_class: names of the layers with rows for each class, with the rows of a class.
        finest: index of the finest map of the body that enters the pyramid; torchvision numbers its layers from there.
    """

    name: str
    mark: str
    kind: TaskKind
    background: bool
    per_class: Mapping[str, int]
    finest: int = 0


RCNN_CLASSES = {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4}
LAYOUTS = (
    DetectorLayout(
        "torchvision_mask_rcnn",
        "roi_heads.mask_predictor.mask_fcn_logits.weight",
        InstanceSegmentationTask.kind,
        background=True,
        per_class={**RCNN_CLASSES, "roi_heads.mask_predictor.mask_fcn_logits": 1},
    ),
    DetectorLayout(
        "torchvision_faster_rcnn",
        "roi_heads.box_predictor.cls_score.weight",
        DetectionTask.kind,
        background=True,
        per_class=RCNN_CLASSES,
    ),
    DetectorLayout(
        "torchvision_fcos",
        "head.regression_head.bbox_ctrness.weight",
        DetectionTask.kind.with_model("fcos"),
        background=False,
        per_class={"head.classification_head.cls_logits": 1},
        finest=FINEST,
    ),
)


def layout_of(names: Collection[str], path: Path) -> DetectorLayout | None:
    """The layout of a file with tensors of these names, None for a file of something else.

    Raises:
        WeightsError: torchvision's SSDLite, whose heads read other maps than those of this program.
    """
    if SSDLITE in names:
        raise WeightsError(
            f"{path} must hold a detector whose heads fit, got torchvision's SSDLite, which reads an expansion layer "
            "and a narrower tail of MobileNetV3: start from mobilenet_v3_large-5c1a4163.pth with "
            "supernet=mobilenet_v3_large detector=ssdlite"
        )
    if f"{BODY}conv1.weight" not in names:
        return None
    return next((layout for layout in LAYOUTS if layout.mark in names), None)


def body_of(state: Mapping[str, Tensor], table: SupernetTable, path: Path) -> dict[str, Tensor]:
    """The tensors of the body of a file, with all names of the table's body.

    Raises:
        WeightsError: the table is of another family, or a tensor is missing, unknown, or of another shape.
    """
    if not isinstance(table, ResNetTable):
        raise WeightsError(
            f"{path} must hold weights of the supernet '{table.name}', got a detector on a ResNet: choose "
            "supernet=resnet50"
        )
    targets = build_body(table).state_dict()
    given = {name.removeprefix(BODY): tensor for name, tensor in state.items() if name.startswith(BODY)}
    unknown = sorted(given.keys() - targets.keys())
    for name, target in targets.items():
        tensor = given.get(name)
        if tensor is None and name.endswith(COUNTER):  # frozen norms have none
            continue
        if tensor is None or tensor.shape != target.shape or unknown:
            got = "none" if tensor is None else tuple(tensor.shape)
            wanted = f"'{BODY}{name}' of shape {tuple(target.shape)}"
            raise WeightsError(
                f"{path} must hold {wanted}, got {unknown[0] if unknown else got}: choose its supernet=..."
            )
        targets[name] = tensor
    return targets


def rest_of(state: Mapping[str, Tensor], layout: DetectorLayout, path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of neck and heads by the names that this program gives them, and the number of classes.

    Raises:
        WeightsError: another number of classes than torchvision's files have.
    """
    rest = {_renamed(name, layout.finest): tensor for name, tensor in state.items() if not name.startswith(BODY)}
    rows = [0, *IDS] if layout.background else list(IDS)
    for layer, each in layout.per_class.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in rest or len(rest[name]) != each * len(CATEGORIES):
                got = "none" if name not in rest else f"{len(rest[name]) / each:g}"
                count = len(CATEGORIES)
                raise WeightsError(
                    f"{path} must hold the {count} classes of torchvision's files in '{name}', got {got}"
                )
            grouped = rest[name].unflatten(0, (-1, each))
            rest[name] = grouped[torch.tensor(rows)].flatten(0, 1)
    return rest, len(IDS)


def _renamed(name: str, finest: int) -> str:
    """The name of a tensor of neck or heads; files of older versions name single convolutions without an index."""
    name = name.replace(FPN, "backbone.neck.", 1)
    parts = name.split(".")
    if name.startswith(("backbone.neck.inner_blocks", "backbone.neck.layer_blocks")):
        parts[3] = str(int(parts[3]) + finest)
        if len(parts) == 5:
            parts.insert(4, "0")
    elif name.startswith("rpn.head.conv.") and len(parts) == 4:
        parts[3:3] = ["0", "0"]
    elif name.startswith("roi_heads.mask_head.mask_fcn"):
        parts = ["roi_heads", "mask_head", str(int(parts[2].removeprefix("mask_fcn")) - 1), "0", parts[3]]
    return ".".join(parts)
