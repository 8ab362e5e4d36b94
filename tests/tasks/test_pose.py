"""Pose: costs against torch's counter, scores against pycocotools and by hand, extraction, flip test, distillation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.tasks.coco_metrics import Persons
from nas_transfer.tasks.heatmaps import encode_heatmaps
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.pose_head import PoseHeadSize
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet

HEAD = PoseHeadSize(channels=(24, 16), sigma=1.0, flip_test=True, score_threshold=0.2, oks_threshold=0.9)
SIGMAS = [0.05, 0.1, 0.07, 0.04]
SIZE = (96, 64)


def make_task(arch: ArchOrSupernet = SUPERNET, size: tuple[int, int] = SIZE) -> PoseTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), arch, num_classes=4)
    return PoseTask(settings, head=HEAD, input_size=size, category_id=3, flip_pairs=[[1, 2]], sigmas=SIGMAS)


def make_batch(count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(256, (count, 3, *SIZE), generator=generator, dtype=torch.uint8),
        "keypoints": torch.rand(count, 4, 2, generator=generator, dtype=dtype) * 60,
        "visible": torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=dtype).repeat(count, 1),
        "to_image": torch.tensor([[0.5, 0.0, 7.0], [0.0, 0.5, -2.0]], dtype=torch.float64).repeat(count, 1, 1),
        "image_ids": torch.arange(count),
        "sample_ids": 10 + torch.arange(count),
        "areas": torch.full((count,), 900.0),
        "box_scores": torch.ones(count),
    }


def test_the_extracted_network_equals_the_active_one_in_outputs_and_losses() -> None:
    task = make_task().double()
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    generator = np.random.default_rng(0)
    batch = make_batch(dtype=torch.float64)
    for arch in [task.table.space.smallest(), *(task.table.space.sample(generator) for _ in range(3))]:
        subnet = task.extract(arch)
        task.set_arch(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        ours, theirs = (module.eval().forward_batch(batch) for module in (task, subnet))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        losses = [
            module.train().losses(batch, regularise=True, teacher=None)[0]["heatmaps"] for module in (task, subnet)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)


def test_the_heads_cost_equals_torchs_counter_and_its_parameters() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.network(torch.zeros(1, 3, *SIZE))
    costs = task.costs(task.arch)
    assert counter.get_total_flops() // 2 == costs["body"].macs + costs["head"].macs
    assert sum(p.numel() for p in task.network.parameters()) == costs["body"].params + costs["head"].params


def test_the_loss_is_the_mean_square_over_labelled_maps_and_the_teachers_share() -> None:
    task = make_task().train()
    task.set_arch(task.table.space.smallest())
    batch = make_batch()
    losses, maps = task.losses(batch, regularise=True, teacher=None)
    targets, _ = encode_heatmaps(batch["keypoints"], batch["visible"], tuple(maps.shape[2:]), HEAD.stride, HEAD.sigma)
    by_hand = sum(float((maps[b, k] - targets[b, k]).square().mean()) for b in range(3) for k in (0, 1, 3)) / (3 * 4)
    assert losses["heatmaps"].item() == pytest.approx(by_hand, rel=1e-5)
    teacher = torch.full_like(maps, 0.5)
    mixed, _ = task.losses(batch, regularise=False, teacher=Teacher(teacher, 0.25))
    assert mixed["heatmaps"].item() == pytest.approx(0.75 * by_hand, rel=1e-4)
    assert mixed["distillation"].item() == pytest.approx(0.25 * float((maps - 0.5).square().mean()), rel=1e-4)


def test_predictions_are_in_the_image_and_those_of_a_mirrored_crop_are_mirrored() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    for module in (task.network.maps, *task.network.deconvolutions):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.1)  # with the initial weights all maps are nearly flat
    batch = make_batch()
    with torch.no_grad():
        points, scores = task.predict(batch)
        mirrored, same = task.predict(batch | {"images": batch["images"].flip(3)})
    in_crop = (points - np.array([7.0, -2.0])) / 0.5
    others = (mirrored - np.array([7.0, -2.0])) / 0.5
    np.testing.assert_allclose(others[:, [0, 2, 1, 3], 0], SIZE[1] - 1 - in_crop[..., 0], atol=1e-3)
    np.testing.assert_allclose(others[:, [0, 2, 1, 3], 1], in_crop[..., 1], atol=1e-3)
    np.testing.assert_allclose(same[:, [0, 2, 1, 3]], scores, atol=1e-5)
    assert (in_crop >= -6).all()  # no further off than the expansion allows
    assert (in_crop <= np.array([SIZE[1] + 6, SIZE[0] + 6])).all()


def ground_truth(path: Path) -> COCO:
    """Three images with one, two and no person, four keypoints each."""
    rng = np.random.default_rng(1)
    annotations: list[dict[str, Any]] = []
    for image_id, count in ((0, 1), (1, 2), (2, 1)):
        for number in range(count):
            points = rng.uniform(0, 40, (4, 2)) + 60 * number
            visible = [2, 1, 2, 2] if image_id < 2 else [2, 0, 0, 2]
            keypoints = [v for point, flag in zip(points, visible, strict=True) for v in (*point, flag)]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": 3, "iscrowd": 0,
                    "area": 1500.0, "bbox": [60.0 * number, 0.0, 50.0, 50.0], "keypoints": keypoints,
                    "num_keypoints": sum(flag > 0 for flag in visible),
                }
            )  # fmt: skip
    images = [{"id": k, "height": 200, "width": 200, "file_name": f"{k}.jpg"} for k in range(3)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "person"}]}
    path.write_text(json.dumps(content))
    return COCO(str(path))


def by_hand(truth: COCO, results: list[dict[str, Any]]) -> float:
    """Average precision by OKS: greedy matching of the surest first, 101 recalls, ten thresholds."""
    precisions = []
    for threshold in np.linspace(0.5, 0.95, 10):
        outcomes: list[tuple[float, bool]] = []
        for image_id in truth.getImgIds():
            free = truth.loadAnns(truth.getAnnIds(image_id))
            own = sorted((r for r in results if r["image_id"] == image_id), key=lambda record: -record["score"])
            for record in own:
                found = np.asarray(record["keypoints"]).reshape(-1, 3)[:, :2]
                best, best_oks = None, threshold
                for person in free:
                    real = np.asarray(person["keypoints"]).reshape(-1, 3)
                    labelled = real[:, 2] > 0
                    squares = np.square(found - real[:, :2]).sum(1)[labelled]
                    variances = np.square(2 * np.asarray(SIGMAS))[labelled]
                    oks = float(np.exp(-squares / (2 * variances * person["area"])).mean())
                    if oks >= best_oks:
                        best, best_oks = person, oks
                if best is not None:
                    free.remove(best)
                outcomes.append((record["score"], best is not None))
        outcomes.sort(key=lambda outcome: -outcome[0])
        hits = np.cumsum([hit for _, hit in outcomes])
        recall = hits / len(truth.anns)
        precision = hits / np.arange(1, len(hits) + 1)
        at = [max((p for p, r in zip(precision, recall, strict=True) if r >= level), default=0.0)
              for level in np.linspace(0, 1, 101)]  # fmt: skip
        precisions.append(np.mean(at))
    return float(np.mean(precisions))


def as_arrays(persons: dict[int, dict[str, Any]]) -> Persons:
    columns = {key: np.asarray([person[key] for person in persons.values()]) for key in persons[1]}
    return Persons(
        sample_ids=np.asarray(list(persons)), image_ids=columns["image_id"], areas=columns["area"],
        scores=columns["score"], points=columns["points"], point_scores=columns["scores"],
    )  # fmt: skip


def test_scores_equal_pycocotools_on_the_written_file_and_a_computation_by_hand(tmp_path: Path) -> None:
    truth = ground_truth(tmp_path / "truth.json")
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    task.ground_truth = truth
    rng = np.random.default_rng(0)
    noises = iter([0.5, 3.0, 8.0, 1.0])
    persons = {}
    for number, annotation in truth.anns.items():
        real = np.asarray(annotation["keypoints"]).reshape(-1, 3)[:, :2]
        persons[number] = {
            "image_id": annotation["image_id"], "area": 1500.0, "score": float(rng.uniform(0.3, 1)),
            "points": real + rng.normal(0, next(noises), (4, 2)), "scores": rng.uniform(0, 1, 4),
        }  # fmt: skip
    persons[9] = persons[1] | {"score": 0.1}  # a duplicate, which is dropped
    persons[10] = persons[1] | {"score": 0.99, "points": persons[1]["points"] + 70}  # a person where none is
    task.metric.update(as_arrays(persons))
    metrics = task.compute_metrics()
    results = task.predictions["predictions"]
    assert len(results) == 5
    written = tmp_path / "predictions.json"
    written.write_text(json.dumps(results))
    evaluation = COCOeval(truth, truth.loadRes(str(written)), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.asarray(SIGMAS)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for name, place in (("ap", 0), ("ap_50", 1), ("ap_75", 2), ("ap_medium", 3), ("ar", 5)):
        assert metrics[name] == pytest.approx(evaluation.stats[place], abs=1e-6)
    assert "ap_large" not in metrics  # there is no large person
    assert 0.2 < metrics["ap"] < 0.95
    assert metrics["ap"] == pytest.approx(by_hand(truth, results), abs=1e-6)


def test_a_persons_score_is_its_boxs_times_the_mean_of_its_sure_keypoints() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    task.predict = lambda _: (np.zeros((2, 4, 2)), np.array([[0.1, 0.4, 0.6, 0.2], [0.1, 0.1, 0.1, 0.1]]))  # type: ignore[method-assign]
    batch = make_batch(2) | {"box_scores": torch.tensor([0.5, 1.0])}
    persons = task.predict_persons(batch)
    assert persons.sample_ids.tolist() == [10, 11]
    assert persons.scores == pytest.approx([0.25, 0.0])


def test_a_size_that_the_body_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 32 pixels, got \[96, 60\]"):
        make_task(load_supernet("bignas_nano").space.smallest(), size=(96, 60))
