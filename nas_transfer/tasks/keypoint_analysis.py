"""What a pose network is good at, keypoint by keypoint: from persons in COCO's result format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nas_transfer.runs import Analysis, ClassScores, ImageScore
from nas_transfer.tasks.coco_analysis import MATCH_IOU, precision_recall, scored_predictions, threshold_curve, worst_of
from nas_transfer.tasks.coco_metrics import run_coco
from nas_transfer.tasks.prediction import CocoResult

Values: TypeAlias = npt.NDArray[np.float64]


def analyse_keypoints(
    ground_truth: COCO,
    results: Sequence[CocoResult],
    category_id: int,
    names: Sequence[str],
    sigmas: Sequence[float],
) -> Analysis:
    """Analyse a pose network.

    An annotated person is compared with the prediction that COCO's evaluation matches to it at an object keypoint
    similarity (OKS) of 0.5. Of each labelled keypoint, the similarity exp(-d^2 / (2 area (2 sigma)^2)) is what it adds
    to the OKS, 0 for a person without a match. ``similarity`` is the mean, and ``pck``, the percentage of correct
    keypoints (Yang and Ramanan 2013), counts those of at least 0.5.

    Args:
        ground_truth: the annotations; all of their images count.
        results: predicted persons.
        category_id: COCO id of the category.
        names: of the K keypoints.
        sigmas: (K,) of the OKS.
    """
    image_ids = ground_truth.getImgIds()
    evaluation = run_coco(ground_truth, results, image_ids, "keypoints", sigmas)
    persons = similarities(evaluation, np.asarray(sigmas, dtype=np.float64))
    classes = []
    for index, name in enumerate(names):
        labelled = np.asarray([row[index] for _, row in persons if not np.isnan(row[index])])
        scores = {"pck": float((labelled >= MATCH_IOU).mean()), "similarity": float(labelled.mean())}
        classes.append(ClassScores(name, len(labelled), scores if len(labelled) else {}))
    scored = scored_predictions(evaluation)
    return Analysis(
        images=len(image_ids),
        counted="keypoints",
        classes_are="keypoint",
        classes=tuple(classes),
        matched=f"OKS of at least {MATCH_IOU}",
        precision_recall=precision_recall(evaluation, [category_id]),
        threshold=threshold_curve([scored[category_id]] if category_id in scored else []),
        worst=worst_of(_image_scores(persons)),
        worst_by="mean similarity of the labelled keypoints",
    )


def similarities(evaluation: COCOeval, sigmas: Values) -> list[tuple[int, Values]]:
    """The image and the similarities (K,) of each annotated person's keypoints, NaN where none is labelled."""
    found = []
    for one in evaluation.evalImgs:
        if one is None or one["aRng"] != evaluation.params.areaRng[0]:
            continue
        persons = list(zip(one["gtIds"], np.asarray(one["gtMatches"])[0], one["gtIgnore"], strict=True))
        for person_id, match, ignored in persons:
            if not ignored:
                person = evaluation.cocoGt.anns[person_id]
                partner = evaluation.cocoDt.anns[int(match)] if match > 0 else None
                found.append((int(one["image_id"]), _similarity(person, partner, sigmas)))
    return found


def _similarity(person: Mapping[str, object], partner: Mapping[str, object] | None, sigmas: Values) -> Values:
    """The similarities (K,) of a person's keypoints to those of its partner; 0 without one."""
    labelled = np.asarray(person["keypoints"], dtype=np.float64).reshape(-1, 3)
    values = np.zeros(len(labelled))
    if partner is not None:
        points = np.asarray(partner["keypoints"], dtype=np.float64).reshape(-1, 3)
        distances = ((labelled[:, :2] - points[:, :2]) ** 2).sum(1)
        area = float(np.asarray(person["area"])) + np.spacing(1)
        values = np.exp(-distances / (2 * sigmas) ** 2 / area / 2)
    return np.where(labelled[:, 2] > 0, values, np.nan)


def _image_scores(persons: Sequence[tuple[int, Values]]) -> list[ImageScore]:
    by_image: dict[int, list[Values]] = {}
    for image_id, row in persons:
        by_image.setdefault(image_id, []).append(row)
    images = []
    for image_id, rows in by_image.items():
        labelled = np.concatenate(rows)
        labelled = labelled[~np.isnan(labelled)]
        wrong = int((labelled < MATCH_IOU).sum())
        text = f"{wrong} of {len(labelled)} keypoints of {len(rows)} person{'s' if len(rows) > 1 else ''} wrong"
        images.append(ImageScore(image_id, "", float(labelled.mean()), text))
    return images
