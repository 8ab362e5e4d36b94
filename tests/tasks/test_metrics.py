"""Metrics gather predictions over ranks, and each prediction counts once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from pycocotools.coco import COCO

from nas_transfer.tasks.coco_metrics import Persons
from nas_transfer.tasks.label_analysis import Answers, MapScores
from nas_transfer.tasks.metrics import CocoMetric, KeypointMetric, RowMetric, SegmentResults
from tests.tasks.test_coco_metrics import CATEGORY_IDS, ground_truth, random_boxes

IMAGES = [10, 11, 12, 13]
PARTS = {
    "an image of both ranks": ([10, 11], [11, 12, 13]),
    "a rank without images": (IMAGES, []),
    "a first rank without images": ([], IMAGES),
}
SIZE = (200, 200)
SIGMAS = [0.05, 0.1, 0.07, 0.04]


def detections(image_id: int) -> dict[str, torch.Tensor]:
    """Boxes, labels, scores and masks of an image; none of image 12."""
    generator = torch.Generator().manual_seed(image_id)
    count = 0 if image_id == 12 else 3
    return {
        "boxes": random_boxes(generator, count), "labels": torch.randint(1, 4, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator),
        "masks": 0.4 + 0.6 * torch.rand(count, 1, 28, 28, generator=generator),
    }  # fmt: skip


def truth() -> COCO:
    """Boxes that are a little off the detected ones, and masks that fill them."""
    outputs = [detections(image_id) for image_id in IMAGES]
    boxes, labels = [output["boxes"] + 2 for output in outputs], [output["labels"] for output in outputs]
    coco = ground_truth(boxes, labels, [[0] * len(own) for own in boxes])
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    return coco


def boxes(image_ids: Sequence[int]) -> CocoMetric:
    metric = CocoMetric(CATEGORY_IDS)
    for image_id in image_ids:
        metric.update([image_id], [detections(image_id)])
    return metric


def masks(image_ids: Sequence[int]) -> CocoMetric:
    metric = CocoMetric(CATEGORY_IDS, with_masks=True)
    for start in range(0, len(image_ids), 2):
        pair = image_ids[start : start + 2]
        metric.update(pair, [detections(image_id) for image_id in pair], [SIZE] * len(pair))
    return metric


def persons(image_ids: Sequence[int]) -> KeypointMetric:
    metric = KeypointMetric(len(SIGMAS), CATEGORY_IDS[0], SIGMAS, oks_threshold=0.9)
    for image_id in image_ids:
        rng = np.random.default_rng(image_id)
        points = rng.uniform(0, 100, (2, len(SIGMAS), 2))
        samples, images = np.asarray([2 * image_id, 2 * image_id + 1]), np.asarray([image_id, image_id])
        metric.update(Persons(samples, images, np.full(2, 900.0), rng.random(2), points, rng.random((2, len(SIGMAS)))))
    return metric


def person_truth() -> COCO:
    coco = truth()
    for annotation in coco.anns.values():
        points = np.random.default_rng(annotation["image_id"]).uniform(0, 100, (len(SIGMAS), 2)) + 1
        flat = [value for point in points.tolist() for value in (*point, 2)]
        annotation |= {"keypoints": flat, "num_keypoints": len(SIGMAS), "category_id": CATEGORY_IDS[0]}
    return coco


def segments(image_ids: Sequence[int]) -> SegmentResults:
    metric = SegmentResults()
    for image_id in image_ids:
        metric.update(image_id, torch.randint(4, (9, 13), generator=torch.Generator().manual_seed(image_id)))
    return metric


def answers(image_ids: Sequence[int]) -> Answers:
    metric = Answers()
    for image_id in image_ids:
        logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(image_id))
        metric.update(torch.tensor([image_id]), torch.tensor([image_id % 3]), logits)
    return metric


def map_scores(image_ids: Sequence[int]) -> MapScores:
    metric = MapScores()
    for image_id in image_ids:
        metric.update(image_id, 1 / image_id, 2 / image_id)
    return metric


METRICS: dict[str, tuple[Callable[[Sequence[int]], RowMetric], Callable[[], COCO]]] = {
    "boxes": (boxes, truth), "masks": (masks, truth), "persons": (persons, person_truth), "segments": (segments, truth),
    "answers": (answers, truth), "map scores": (map_scores, truth),
}  # fmt: skip


def computed(name: str, image_ids: Sequence[int]) -> str:
    """Scores and predictions of a metric, to the last bit."""
    build, annotations = METRICS[name]
    metric = build(image_ids)
    metric.ground_truth = annotations()
    return json.dumps([metric.compute(), getattr(metric, "results", None)], default=np.ndarray.tolist)


def compute_on(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {f"{name} of {case}": computed(name, parts[rank]) for case, parts in PARTS.items() for name in METRICS}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_score_what_one_does(tmp_path: Path) -> None:
    multiprocessing.start_processes(compute_on, (tmp_path,), nprocs=2, start_method="fork")  # torch is imported
    alone = {name: computed(name, IMAGES) for name in METRICS}
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == len(PARTS) * len(METRICS)
        for case, value in found.items():
            in_order = alone[case.partition(" of ")[0]]
            assert value == in_order, case


def test_predictions_score_between_the_worst_and_the_best() -> None:
    for name, key in (("boxes", "map"), ("masks", "map_segm"), ("persons", "ap")):
        metrics, results = json.loads(computed(name, IMAGES))
        assert 0 < metrics[key] < 1
        assert len(results["segm"] if name == "masks" else results["bbox"] if name == "boxes" else results) >= 8


def test_a_metric_is_empty_after_a_reset_and_needs_its_ground_truth() -> None:
    metric = boxes(IMAGES)
    with pytest.raises(RuntimeError, match="ground_truth"):
        metric.compute()
    metric.ground_truth = truth()
    assert metric.compute()["map"] > 0
    metric.reset()
    metric.update([10], [detections(10)])
    metric.compute()
    assert {record["image_id"] for record in metric.results["bbox"]} == {10}
