"""COCO metrics against torchmetrics' and against cases with a known answer."""

import pytest
import torch
from pycocotools.coco import COCO
from torchmetrics.detection import MeanAveragePrecision

from nas_transfer.tasks.coco_metrics import (
    BOX_STATISTICS,
    IouType,
    encode_mask,
    evaluate_coco,
    run_coco,
    to_coco_results,
)
from nas_transfer.tasks.prediction import RunLengths

CATEGORY_IDS = [3, 7, 20]


def ground_truth(boxes: list[torch.Tensor], labels: list[torch.Tensor], crowds: list[list[int]]) -> COCO:
    """A COCO object of images 10, 11, ... with xyxy boxes."""
    annotations = []
    for image, (image_boxes, image_labels, image_crowds) in enumerate(zip(boxes, labels, crowds, strict=True)):
        for (x0, y0, x1, y1), label, crowd in zip(
            image_boxes.tolist(), image_labels.tolist(), image_crowds, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": 10 + image, "category_id": CATEGORY_IDS[label - 1],
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": crowd,
                }
            )  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 10 + image, "width": 200, "height": 200} for image in range(len(boxes))],
        "categories": [{"id": category, "name": str(category)} for category in CATEGORY_IDS],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def random_boxes(generator: torch.Generator, count: int) -> torch.Tensor:
    corner = 120 * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 5 + 70 * torch.rand(count, 2, generator=generator)], 1)


def test_the_statistics_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = [random_boxes(generator, count) for count in (4, 6, 0, 3, 5)]
    labels = [torch.randint(1, 4, (len(part),), generator=generator) for part in boxes]
    crowds = [[0] * len(part) for part in boxes]
    outputs = []
    for part, part_labels in zip(boxes, labels, strict=True):
        noisy = part + 4 * torch.randn(part.shape, generator=generator)
        extra = random_boxes(generator, 3)
        outputs.append(
            {
                "boxes": torch.cat([noisy, extra]),
                "labels": torch.cat([part_labels, torch.randint(1, 4, (3,), generator=generator)]),
                "scores": torch.rand(len(part) + 3, generator=generator),
            }
        )
    metric = MeanAveragePrecision(backend="pycocotools")
    metric.update(
        outputs,
        [{"boxes": part, "labels": part_labels} for part, part_labels in zip(boxes, labels, strict=True)],
    )
    expected = {name: value.item() for name, value in metric.compute().items() if value.numel() == 1}
    image_ids = [10, 11, 12, 13, 14]
    ours = evaluate_coco(
        ground_truth(boxes, labels, crowds), to_coco_results(image_ids, outputs, CATEGORY_IDS), image_ids
    )
    assert 0.05 < ours["map"] < 0.95
    for name, value in ours.items():
        assert value == pytest.approx(expected[name], abs=1e-6), name


def test_boxes_inside_a_crowd_are_no_false_positives() -> None:
    boxes = [torch.tensor([[10.0, 10.0, 30.0, 30.0], [100.0, 100.0, 180.0, 180.0]])]
    labels = [torch.tensor([1, 1])]
    found = torch.tensor([[110.0, 110.0, 120.0, 120.0], [130.0, 130.0, 150.0, 150.0], [10.0, 10.0, 30.0, 30.0]])
    outputs = [{"boxes": found, "labels": torch.ones(3, dtype=torch.int64), "scores": torch.tensor([0.9, 0.8, 0.7])}]
    results = to_coco_results([10], outputs, CATEGORY_IDS)
    assert evaluate_coco(ground_truth(boxes, labels, [[0, 1]]), results, [10])["map"] == pytest.approx(1.0)
    assert evaluate_coco(ground_truth(boxes, labels, [[0, 0]]), results, [10])["map"] < 0.3


def test_perfect_predictions_score_one_and_undefined_statistics_are_left_out() -> None:
    boxes, labels = [torch.tensor([[10.0, 10.0, 30.0, 30.0]])], [torch.tensor([2])]
    outputs = [{"boxes": boxes[0], "labels": labels[0], "scores": torch.tensor([0.9])}]
    ours = evaluate_coco(ground_truth(boxes, labels, [[0]]), to_coco_results([10], outputs, CATEGORY_IDS), [10])
    assert ours["map"] == pytest.approx(1.0)
    assert ours["map_small"] == pytest.approx(1.0)
    assert "map_large" not in ours


def test_no_predictions_at_all_score_zero() -> None:
    coco = ground_truth([torch.tensor([[10.0, 10.0, 30.0, 30.0]])], [torch.tensor([1])], [[0]])
    assert evaluate_coco(coco, [], [10])["map"] == 0.0


def test_images_that_were_not_predicted_do_not_count() -> None:
    box, label = torch.tensor([[10.0, 10.0, 30.0, 30.0]]), torch.tensor([1])
    coco = ground_truth([box, box], [label, label], [[0], [0]])
    results = to_coco_results([10], [{"boxes": box, "labels": label, "scores": torch.tensor([0.5])}], CATEGORY_IDS)
    assert evaluate_coco(coco, results, [10])["map"] == pytest.approx(1.0)
    assert evaluate_coco(coco, results, [10, 11])["map"] < 0.6


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_faster_evaluation_equals_pycocotools_and_leaves_annotations_and_log_as_they_are(
    iou_type: IouType, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faster_coco_eval", reason="needs the extra coco")
    generator = torch.Generator().manual_seed(1)
    boxes = [random_boxes(generator, count) for count in (4, 6, 0, 3, 5)]
    labels = [torch.randint(1, 4, (len(part),), generator=generator) for part in boxes]
    crowds = [[int(index == 2) for index in range(len(part))] for part in boxes]
    coco = ground_truth(boxes, labels, crowds)
    results = []
    for image, part in enumerate(boxes):
        for (x0, y0, x1, y1), label in zip(part.round().tolist(), labels[image].tolist(), strict=True):
            for shift in (0, 3, 40):
                box = [x0 + shift, y0, x1 - x0, y1 - y0]
                score = round(torch.rand((), generator=generator).item(), 1)
                record = {"image_id": 10 + image, "category_id": CATEGORY_IDS[label - 1], "score": score}
                results.append(record | ({"bbox": box} if iou_type == "bbox" else {"segmentation": _encoded(box)}))
    for annotation in coco.dataset["annotations"]:
        annotation["segmentation"] = _encoded(annotation["bbox"])
    expected = run_coco(coco, results, range(10, 15), iou_type).stats
    before = [set(annotation) for annotation in coco.dataset["annotations"]]
    with caplog.at_level("INFO"):
        ours = evaluate_coco(coco, results, range(10, 15), iou_type)
    assert not caplog.records
    assert 0.05 < ours["map"] < 0.95
    defined = {name: expected[index] for name, index in BOX_STATISTICS.items() if expected[index] >= 0}
    assert ours == pytest.approx(defined, abs=1e-9)
    assert [set(annotation) - {"rle"} for annotation in coco.dataset["annotations"]] == before


def _encoded(box: list[float]) -> RunLengths:
    """The mask of a box xywh in an image of 200x200 pixels."""
    left, top, width, height = (round(value) for value in box)
    mask = torch.zeros(200, 200, dtype=torch.uint8)
    mask[top : top + height, left : left + width] = 1
    return encode_mask(mask)
