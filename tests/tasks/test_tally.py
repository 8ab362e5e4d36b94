"""Scores of samples of images against pycocotools and torchmetrics on resampled data, and the chances of a lead."""

import copy
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_jaccard_index

from nas_transfer.tasks.box_tally import THRESHOLDS, BoxTally, tally_boxes
from nas_transfer.tasks.coco_metrics import evaluate_coco, to_coco_results
from nas_transfer.tasks.prediction import CocoResult
from nas_transfer.tasks.tally import HitTally, Tally
from nas_transfer.tasks.tally_rows import HitRows, PixelRows
from tests.tasks.test_coco_metrics import CATEGORY_IDS, ground_truth, random_boxes

IMAGES = 12


def detections(seed: int, noise: float) -> tuple[COCO, list[CocoResult], list[int]]:
    """Objects, crowds among them, and predictions of some images, which are listed in no order."""
    truth_generator, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    counts = [int(count) for count in torch.randint(0, 6, (IMAGES,), generator=truth_generator)]
    boxes = [random_boxes(truth_generator, count) for count in counts]
    labels = [torch.randint(1, 4, (count,), generator=truth_generator) for count in counts]
    crowds = [[int(index == 2) for index in range(count)] for count in counts]
    outputs = []
    for part, names in zip(boxes, labels, strict=True):
        noisy = part + noise * torch.randn(part.shape, generator=generator)
        found = torch.cat([noisy, random_boxes(generator, 2)])
        guesses = torch.cat([names, torch.randint(1, 4, (2,), generator=generator)])
        outputs.append({"boxes": found, "labels": guesses, "scores": torch.rand(len(found), generator=generator)})
    image_ids = [10 + index for index in range(IMAGES)]
    results = to_coco_results(image_ids, outputs, CATEGORY_IDS)
    order = np.random.default_rng(seed).permutation(image_ids).tolist()
    return ground_truth(boxes, labels, crowds), results, order


def copied(truth: COCO, results: list[CocoResult], times: dict[int, int]) -> float:
    """pycocotools' average precision of a dataset with so many copies of each image."""
    dataset: dict = {"categories": truth.dataset["categories"], "images": [], "annotations": []}
    found = []
    for image_id, count in times.items():
        for _ in range(count):
            new = 1000 * image_id + len(dataset["images"])
            dataset["images"].append({"id": new, "width": 200, "height": 200})
            for annotation in truth.imgToAnns[image_id]:
                row = {**annotation, "id": len(dataset["annotations"]) + 1, "image_id": new}
                dataset["annotations"].append(row)
            found += [{**result, "image_id": new} for result in results if result["image_id"] == image_id]
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def boxes(seed: int = 1, noise: float = 4.0, metric: str = "map") -> BoxTally:
    truth, results, order = detections(seed, noise)
    return tally_boxes(truth, results, order, "bbox", THRESHOLDS[metric])


@pytest.mark.parametrize("metric", sorted(THRESHOLDS))
def test_the_average_precision_of_all_images_is_that_of_pycocotools(metric: str) -> None:
    truth, results, order = detections(1, 4.0)
    assert boxes(metric=metric).score == pytest.approx(evaluate_coco(truth, results, order)[metric], abs=1e-12)


def test_the_average_precision_of_a_sample_is_that_of_a_dataset_with_copies() -> None:
    truth, results, order = detections(1, 4.0)
    weights = np.random.default_rng(0).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=8)
    expected = [copied(truth, results, dict(zip(order, row.tolist(), strict=True))) for row in weights]
    assert len(set(expected)) == 8
    assert boxes().scores(weights) == pytest.approx(expected, abs=1e-12)


def test_an_image_without_objects_and_detections_leaves_a_sample_undefined() -> None:
    tally = boxes()
    empty = np.flatnonzero(tally.objects.sum(1) == 0)
    assert len(empty)
    weights = np.zeros((1, IMAGES), dtype=np.int64)
    weights[0, empty] = 1
    assert math.isnan(tally.scores(weights)[0])


def pixel_rows(seed: int) -> tuple[PixelRows, list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = PixelRows(3)
    answers, labels = [], []
    for image in range(IMAGES):
        label = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(100 + image))
        answer = torch.where(torch.rand(40, generator=generator) < 0.3, (label + 1) % 3, label)
        confusion = torch.zeros(3, 3, dtype=torch.int64)
        for row, column in zip(label.tolist(), answer.tolist(), strict=True):
            confusion[row, column] += 1
        rows.update(image, confusion)
        answers.append(answer)
        labels.append(label)
    return rows, answers, labels


@pytest.mark.parametrize("metric", ["miou", "pixel_accuracy", "mean_accuracy", "1"])
def test_scores_of_pixels_of_a_sample_are_those_of_its_images_joined(metric: str) -> None:
    rows, answers, labels = pixel_rows(1)
    weights = np.random.default_rng(0).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=5)
    expected = []
    for row in weights.tolist():
        chosen = [image for image, count in enumerate(row) for _ in range(count)]
        answer, label = (torch.cat([part[image] for image in chosen]) for part in (answers, labels))
        ious = multiclass_jaccard_index(answer, label, 3, average="none")
        recalls = torch.stack([(answer[label == name] == name).double().mean() for name in range(3)])
        known = {"miou": ious.mean(), "pixel_accuracy": (answer == label).double().mean(), "1": ious[1]}
        expected.append(float({**known, "mean_accuracy": recalls.mean()}[metric]))
    assert rows.tally(metric).scores(weights) == pytest.approx(expected, abs=1e-6)


def hits(*answers: int) -> HitTally:
    return HitTally(np.arange(len(answers)), np.asarray(answers, dtype=bool))


def test_hits_are_those_of_the_largest_logits() -> None:
    rows = HitRows()
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    rows.update(torch.tensor([4, 5, 6]), torch.tensor([0, 1, 0]), logits, 1)
    assert rows.tally().images.tolist() == [4, 5, 6]
    assert rows.tally().hits.tolist() == [True, False, False]
    rows.reset()
    rows.update(torch.tensor([4, 5, 6]), torch.tensor([0, 1, 0]), logits, 2)
    assert rows.tally().hits.tolist() == [True, True, False]
    assert rows.compute() == pytest.approx(2 / 3)


def test_the_chance_of_a_lead_of_a_classifier_is_that_of_the_exact_sign_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = hits(*(rng.random(60) < 0.6).tolist()), hits(*(rng.random(60) < 0.7).tolist())
        ahead = int((other.hits & ~one.hits).sum())
        differing = int((other.hits != one.hits).sum())
        expected = binomtest(ahead, differing, 0.5, alternative="greater").pvalue
        assert one.chance(other, 0.05, rng) == pytest.approx(expected, abs=1e-12)
    assert hits(1, 0, 1).chance(hits(1, 0, 1), 0.05, rng) == 1.0


def test_the_chance_of_a_lead_of_boxes_is_the_share_of_samples_without_it() -> None:
    truth, results, order = detections(1, 6.0)
    _, better, _ = detections(2, 3.0)
    mine, rival = (tally_boxes(truth, found, order, "bbox", THRESHOLDS["map"]) for found in (results, better))
    level = 0.25
    weights = np.random.default_rng(5).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=20)
    behind = 0
    for row in weights.tolist():
        times = dict(zip(order, row, strict=True))
        behind += copied(truth, better, times) <= copied(truth, results, times)
    assert mine.chance(rival, level, np.random.default_rng(5)) == pytest.approx((1 + behind) / 21)


@pytest.mark.parametrize("tally", [boxes(), pixel_rows(1)[0].tally("miou"), hits(1, 0, 1, 1, 0, 0)])
def test_a_tally_is_the_join_of_its_parts_and_survives_a_file(tally: Tally) -> None:
    joined = tally.part(0, 2).joined(tally.part(2, 5)).joined(tally.part(5))
    again = joined.with_arrays(tally.arrays())
    for name, values in tally.arrays().items():
        if values.ndim and name not in ("positions", "categories", "confidences", "matched", "ignored"):
            np.testing.assert_array_equal(joined.arrays()[name], values)
        np.testing.assert_array_equal(again.arrays()[name], values)
    weights = np.random.default_rng(3).multinomial(30, np.full(len(tally.images), 1 / len(tally.images)), size=6)
    np.testing.assert_array_equal(joined.scores(weights), tally.scores(weights))
    with pytest.raises(ValueError, match="of another kind"):
        tally.with_arrays(
            {name: values.astype(np.float32) for name, values in tally.arrays().items() if values.ndim}
            | {name: values for name, values in tally.arrays().items() if not values.ndim}
        )
