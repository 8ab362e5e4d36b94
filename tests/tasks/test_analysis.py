"""What a network is good at: against pycocotools category by category, scikit-learn, and counts by brute force."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support
from torchvision.ops import box_iou

from nas_transfer.data.parts import Vocabulary
from nas_transfer.runs import BACKGROUND
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.coco_analysis import MOST_WORST, analyse_detections, with_files
from nas_transfer.tasks.coco_metrics import encode_mask, to_coco_masks, to_coco_results
from nas_transfer.tasks.keypoint_analysis import analyse_keypoints
from nas_transfer.tasks.label_analysis import Answers, MapScores, analyse_answers, analyse_maps
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.tasks.test_coco_metrics import CATEGORY_IDS, ground_truth, random_boxes

NAMES = ("three", "seven", "twenty")
IMAGES = [10, 11, 12, 13, 14, 15]


def detections() -> tuple[COCO, list[dict[str, torch.Tensor]]]:
    """Boxes of six images, noisy detections of them in other classes at times, and some of nothing; one crowd."""
    generator = torch.Generator().manual_seed(1)
    boxes = [random_boxes(generator, count) for count in (4, 6, 0, 3, 5, 0)]
    labels = [torch.randint(1, 4, (len(part),), generator=generator) for part in boxes]
    crowds = [[0] * len(part) for part in boxes]
    crowds[4][0] = 1
    outputs = []
    for part, part_labels in zip(boxes, labels, strict=True):
        extra = random_boxes(generator, 2 if len(part) else 0)
        guessed = part_labels.clone()
        guessed[::3] = torch.randint(1, 4, (len(guessed[::3]),), generator=generator)
        outputs.append(
            {
                "boxes": torch.cat([part + 1.5 * torch.randn(part.shape, generator=generator).clamp(-1.5, 1.5), extra]),
                "labels": torch.cat([guessed, torch.randint(1, 4, (len(extra),), generator=generator)]),
                "scores": torch.rand(len(part) + len(extra), generator=generator),
            }
        )
    return ground_truth(boxes, labels, crowds), outputs


def coco_of(truth: COCO, results: list[dict[str, object]], category: int, kind: str) -> COCOeval:
    """pycocotools' own evaluation of one category alone."""
    evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
    evaluation.params.imgIds, evaluation.params.catIds = IMAGES, [category]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_the_average_precisions_of_a_class_are_those_of_pycocotools_on_it_alone() -> None:
    truth, outputs = detections()
    results = to_coco_results(IMAGES, outputs, CATEGORY_IDS)
    analysis = analyse_detections(truth, {"bbox": results}, IMAGES, CATEGORY_IDS, NAMES)
    assert [one.name for one in analysis.classes] == list(NAMES)
    curves = analysis.precision_recall
    assert curves is not None
    for index, (one, category) in enumerate(zip(analysis.classes, CATEGORY_IDS, strict=True)):
        alone = coco_of(truth, results, category, "bbox")
        expected = dict(zip(("map", "map_50", "map_75"), alone.stats[:3].tolist(), strict=True))
        assert {name: one.scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(curves.precision[index], alone.eval["precision"][0, :, 0, 0, -1], atol=1e-5)
        assert one.count == sum(not note["iscrowd"] and note["category_id"] == category for note in truth.anns.values())
    assert curves.mean == pytest.approx(np.mean(curves.precision, axis=0), abs=1e-5)
    assert curves.recalls[50] == 0.5


def matches(truth: COCO, outputs: Sequence[dict[str, torch.Tensor]], threshold: float) -> tuple[int, int, int]:
    """True positives, predictions and annotations by COCO's rule at IoU 0.5, counted by loops; crowds left out."""
    right = predicted = annotated = 0
    for image_id, output in zip(IMAGES, outputs, strict=True):
        for label, category in enumerate(CATEGORY_IDS, start=1):
            notes = [note for note in truth.imgToAnns[image_id] if note["category_id"] == category]
            boxes = [torch.tensor(note["bbox"]) for note in notes]
            boxes = [torch.cat([box[:2], box[:2] + box[2:]]) for box in boxes]
            free = [not note["iscrowd"] for note in notes]
            annotated += sum(free)
            order = output["scores"].argsort(descending=True)
            for row in order.tolist():
                if output["labels"][row] != label or output["scores"][row] < threshold:
                    continue
                best, partner = 0.5, None
                for column, box in enumerate(boxes):
                    iou = box_iou(output["boxes"][row][None].double(), box[None].double()).item()
                    if free[column] and iou >= best:
                        best, partner = iou, column
                predicted += 1
                if partner is not None:
                    free[partner] = False
                    right += 1
    return right, predicted, annotated


def test_f1_over_the_threshold_is_that_of_counts_by_hand_and_its_maximum_is_recommended() -> None:
    truth, outputs = detections()
    for note in truth.anns.values():  # a crowd is another matter, below
        note["iscrowd"] = 0
    analysis = analyse_detections(
        truth, {"bbox": to_coco_results(IMAGES, outputs, CATEGORY_IDS)}, IMAGES, CATEGORY_IDS, NAMES
    )
    curve = analysis.threshold
    assert curve is not None
    assert max(curve.thresholds) <= max(output["scores"].max().item() for output in outputs if len(output["scores"]))
    for index in range(0, len(curve.thresholds), 7):
        right, predicted, annotated = matches(truth, outputs, curve.thresholds[index])
        expected = (right / predicted, right / annotated, 2 * right / (predicted + annotated))
        shown = (curve.precision[index], curve.recall[index], curve.f1[index])
        assert shown == pytest.approx(expected, abs=1e-5)
    assert curve.f1[curve.thresholds.index(curve.recommended)] == max(curve.f1)
    right, predicted, annotated = matches(truth, outputs, curve.recommended)
    totals = [one.scores["recall"] * one.count for one in analysis.classes]
    assert (sum(totals), sum(one.count for one in analysis.classes)) == pytest.approx((right, annotated))


def by_hand(truth: COCO, outputs: Sequence[dict[str, torch.Tensor]], threshold: float) -> np.ndarray:
    """The confusion matrix as ultralytics counts it: pairs of any class from the largest IoU down."""
    counts = np.zeros((4, 4), dtype=int)
    for image_id, output in zip(IMAGES, outputs, strict=True):
        notes = truth.imgToAnns[image_id]
        boxes = torch.tensor([note["bbox"] for note in notes]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        rows = (output["scores"] >= threshold).nonzero().flatten().tolist()
        ious = box_iou(output["boxes"], boxes)
        pairs = sorted((ious[row, column].item(), row, column) for row in rows for column in range(len(notes)))[::-1]
        taken_rows: dict[int, int] = {}
        for iou, row, column in pairs:
            if iou >= 0.5 and row not in taken_rows and column not in taken_rows.values():
                taken_rows[row] = column
        for row in rows:
            column = taken_rows.get(row)
            true = 3 if column is None else CATEGORY_IDS.index(notes[column]["category_id"])
            counts[true, output["labels"][row] - 1] += 1
        for column in set(range(len(notes))) - set(taken_rows.values()):
            counts[CATEGORY_IDS.index(notes[column]["category_id"]), 3] += 1
    return counts


def test_the_confusion_matrix_of_a_detector_pairs_boxes_across_classes_and_has_a_background() -> None:
    truth, outputs = detections()
    for note in truth.anns.values():
        note["iscrowd"] = 0
    analysis = analyse_detections(
        truth, {"bbox": to_coco_results(IMAGES, outputs, CATEGORY_IDS)}, IMAGES, CATEGORY_IDS, NAMES
    )
    assert analysis.confusion is not None
    assert analysis.threshold is not None
    assert analysis.confusion.names == (*NAMES, BACKGROUND)
    expected = by_hand(truth, outputs, analysis.threshold.recommended)
    assert np.asarray(analysis.confusion.counts).tolist() == expected.tolist()
    assert expected[:3, :3].sum() > np.trace(expected) > 0  # some are right, some of another class
    assert expected[:3].sum() == len(truth.anns)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    boxes, labels = torch.tensor([[10.0, 10, 110, 110]]), torch.tensor([1])
    truth = ground_truth([boxes], [labels], [[1]])
    inside = {"boxes": torch.tensor([[20.0, 20, 60, 60]]), "labels": labels, "scores": torch.tensor([0.9])}
    results = {"bbox": to_coco_results([10], [inside], CATEGORY_IDS)}
    analysis = analyse_detections(truth, results, [10], CATEGORY_IDS, NAMES)
    assert analysis.confusion is not None
    assert np.asarray(analysis.confusion.counts).sum() == 0
    assert analysis.worst == ()


def test_the_worst_images_come_first_with_their_files_and_what_is_wrong() -> None:
    truth, outputs = detections()
    results = {"bbox": to_coco_results(IMAGES, outputs, CATEGORY_IDS)}
    analysis = with_files(
        analyse_detections(truth, results, IMAGES, CATEGORY_IDS, NAMES),
        {image_id: f"{image_id}.jpg" for image_id in IMAGES},
    )
    values = [one.value for one in analysis.worst]
    assert values == sorted(values)
    assert len(analysis.worst) <= MOST_WORST
    assert all(one.file == f"{one.image_id}.jpg" for one in analysis.worst)
    assert {one.image_id for one in analysis.worst} <= {10, 11, 13, 14}  # nothing is on the others
    empty = analyse_detections(truth, {"bbox": []}, IMAGES, CATEGORY_IDS, NAMES)
    assert [one.text for one in empty.worst[:2]] == ["4 of 4 missed", "6 of 6 missed"]
    assert empty.threshold is None
    assert [one.scores["map"] for one in empty.classes] == [0, 0, 0]


def test_a_detector_with_masks_is_analysed_by_its_masks() -> None:
    truth, outputs = detections()
    for note in truth.anns.values():
        x, y, width, height = note["bbox"]
        note["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        note["iscrowd"] = 0
    masks = []
    for output in outputs:
        height = torch.zeros(len(output["boxes"]), 200, 200, dtype=torch.uint8)
        for mask, (x0, y0, x1, _) in zip(height, output["boxes"].round().int().tolist(), strict=True):
            mask[max(0, y0) : y0 + 20, max(0, x0) : x1] = 1  # strips, which no annotated mask is
        masks.append([encode_mask(mask) for mask in height])
    results = {
        "bbox": to_coco_results(IMAGES, outputs, CATEGORY_IDS),
        "segm": to_coco_masks(IMAGES, outputs, masks, CATEGORY_IDS),
    }
    analysis = analyse_detections(truth, results, IMAGES, CATEGORY_IDS, NAMES)
    assert analysis.matched.startswith("mask")
    assert list(analysis.classes[0].scores)[:6] == [
        "map_segm", "map_50_segm", "map_75_segm", "map", "map_50", "map_75",
    ]  # fmt: skip
    for one, category in zip(analysis.classes, CATEGORY_IDS, strict=True):
        assert one.scores["map_segm"] == pytest.approx(coco_of(truth, results["segm"], category, "segm").stats[0])
        assert one.scores["map"] == pytest.approx(coco_of(truth, results["bbox"], category, "bbox").stats[0])


SIGMAS = (0.05, 0.1, 0.07)


def test_a_keypoint_counts_as_right_by_its_share_of_the_similarity_and_never_in_a_missed_person() -> None:
    generator = np.random.default_rng(0)
    annotations, results = [], []
    for number, image_id in enumerate((1, 1, 2, 3)):
        points = np.concatenate([generator.uniform(50 + 300 * number, 150 + 300 * number, (3, 2)), [[2], [1], [2]]], 1)
        if number == 3:
            points[1] = 0
        annotations.append(
            {
                "id": 7 + number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": 5000.0,
                "bbox": [50 + 300 * number, 50, 100, 100], "keypoints": points.flatten().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
            }
        )  # fmt: skip
        if number != 1:  # which is missed
            guess = points.copy()
            guess[:, :2] += generator.uniform(-3, 3, (3, 2))
            guess[0, 0] += 20 * (number == 0)
            keypoints = guess.flatten().tolist()
            results.append(
                {"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": 0.5 + 0.1 * number}
            )
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image_id} for image_id in (1, 2, 3)],
        "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b", "c"]}],
        "annotations": annotations,
    }
    truth.createIndex()
    analysis = analyse_keypoints(truth, results, 1, ("a", "b", "c"), SIGMAS)
    guesses = {0: results[0], 2: results[1], 3: results[2]}
    for index, (one, sigma) in enumerate(zip(analysis.classes, SIGMAS, strict=True)):
        values = []
        for number, person in enumerate(annotations):
            x, y, visible = person["keypoints"][3 * index : 3 * index + 3]
            if visible:
                values.append(0.0)
                if number in guesses:
                    u, v, _ = guesses[number]["keypoints"][3 * index : 3 * index + 3]
                    values[-1] = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 5000 * (2 * sigma) ** 2))
        assert one.count == len(values)
        assert one.scores["similarity"] == pytest.approx(np.mean(values), abs=1e-9)
        assert one.scores["pck"] == np.mean(np.asarray(values) >= 0.5)
    assert 0 < analysis.classes[0].scores["pck"] < 1
    assert analysis.threshold is not None
    assert max(analysis.threshold.recall) == 0.75
    assert {one.image_id for one in analysis.worst} == {1, 2, 3}
    assert "person" in analysis.worst[0].text


def test_a_classifier_is_analysed_as_scikit_learn_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator)
    answers = Answers()
    for rows in torch.arange(40).split(16):
        answers.update(100 + rows, labels[rows], logits[rows])
    answers.update(torch.tensor([100]), labels[:1], logits[1:2])  # seen again by another rank
    analysis = analyse_answers(answers.compute(), "wxyz")
    guesses = logits.argmax(1).numpy()
    expected = confusion_matrix(labels.numpy(), guesses, labels=range(4))
    assert analysis.confusion is not None
    assert np.asarray(analysis.confusion.counts).tolist() == expected.tolist()
    precision, recall, f1, support = precision_recall_fscore_support(labels, guesses, labels=range(4), zero_division=0)
    assert [one.count for one in analysis.classes] == support.tolist()
    assert [one.scores["accuracy"] for one in analysis.classes[:3]] == pytest.approx(recall[:3].tolist())
    assert "accuracy" not in analysis.classes[3].scores
    assert [one.scores["precision"] for one in analysis.classes] == pytest.approx(precision.tolist())
    assert [one.scores["f1"] for one in analysis.classes] == pytest.approx(f1.tolist())
    losses = [log_loss(labels[k : k + 1], logits[k : k + 1].double().softmax(1), labels=range(4)) for k in range(40)]
    assert [one.image_id - 100 for one in analysis.worst] == np.argsort(losses)[::-1][:MOST_WORST].tolist()
    assert analysis.worst[0].value == pytest.approx(max(losses), rel=1e-5)
    worst = analysis.worst[0].image_id - 100
    assert analysis.worst[0].text.startswith(f"{'wxyz'[labels[worst]]} taken for {'wxyz'[guesses[worst]]} (")


def test_one_image_is_enough_for_a_classifier() -> None:
    answers = Answers()
    answers.update(torch.tensor([5]), torch.tensor([1]), torch.tensor([[0.0, 3.0]]))
    analysis = analyse_answers(answers.compute(), ("a", "b"))
    assert (analysis.images, analysis.worst[0].text) == (1, "b, found (95 %)")


def test_the_ious_of_classes_are_counted_by_pixels_and_the_worst_image_comes_first() -> None:
    counts = torch.tensor([[5, 1, 0], [2, 8, 0], [0, 0, 0]])
    scores = MapScores()
    for image_id, iou in ((4, 0.5), (6, 0.25), (4, 0.1)):
        scores.update(image_id, iou, 0.75)
    analysis = analyse_maps(counts, scores.compute(), ("road", "car", "sky"))
    road, car, sky = analysis.classes
    assert road.scores == {"iou": 5 / 8, "accuracy": 5 / 6, "precision": 5 / 7, "f1": 10 / 13}
    assert (car.count, car.scores["iou"]) == (10, 8 / 11)
    assert sky.scores == {}
    assert [(one.image_id, one.value) for one in analysis.worst] == [(6, 0.25), (4, 0.5)]
    assert analysis.worst[0].text == "mIoU 25.0 %, 25.0 % of the pixels wrong"


def test_details_of_a_classifier_change_no_metric_and_are_kept_only_on_request() -> None:
    table = load_supernet("bignas_nano")
    task = ClassificationTask(TaskSettings(table, table.space.smallest(), 3), label_smoothing=0.0, dropout=0.0).eval()
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "labels": torch.tensor([0, 1, 2, 0]), "sample_ids": torch.tensor([9, 8, 7, 6])}
    found = []
    for details in (False, True):
        task.keeps_details = details
        with torch.inference_mode():
            task.update_metrics(batch)
        found.append(task.compute_metrics())
        analysis = task.analyse(Vocabulary(("a", "b", "c"), (0, 1, 2)))
        assert (analysis is not None) == details
    assert found[0] == found[1]
    assert analysis is not None
    assert sorted(one.image_id for one in analysis.worst) == [6, 7, 8, 9]
