"""Semantic segmentation: costs, extraction, scores against a brute-force count, windows, and imitation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.data.parts import Vocabulary
from nas_transfer.errors import ConfigError
from nas_transfer.tasks.coco_metrics import to_coco_segments
from nas_transfer.tasks.deeplab import DeepLabSize, deeplab_cost
from nas_transfer.tasks.pixel_losses import pixel_cross_entropy
from nas_transfer.tasks.segmentation import (
    SegmentationEvaluation,
    SegmentationTask,
    scores_of,
    slide,
)
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet

HEAD = DeepLabSize(
    channels=24, low_level_channels=8, dilations=(1, 2, 3), dropout=0.0, auxiliary_channels=16, auxiliary_weight=0.4
)
WHOLE = SegmentationEvaluation("whole", (32, 48), (16, 24), keep_predictions=True)


def make_task(arch: ArchOrSupernet = SUPERNET) -> SegmentationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), arch, num_classes=4)
    return SegmentationTask(settings, head=HEAD, evaluation=WHOLE, input_size=(64, 96), class_names=list("abcd"))


def make_batch(height: int = 64, width: int = 96) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8) for _ in range(2)]
    labels = [torch.randint(4, (height, width), generator=generator, dtype=torch.uint8) for _ in range(2)]
    labels[0][:5] = 255
    return {"images": images, "labels": labels, "sample_ids": torch.tensor([3, 4])}


def test_the_extracted_network_equals_the_active_one_in_outputs_and_losses() -> None:
    task = make_task().double()
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    generator = np.random.default_rng(0)
    for arch in [task.table.space.smallest(), *(task.table.space.sample(generator) for _ in range(3))]:
        subnet = task.extract(arch)
        task.set_arch(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        ours, theirs = (t.eval().forward_batch(make_batch(50, 70)) for t in (task, subnet))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        losses = [module.train().losses(make_batch(), regularise=True, teacher=None)[0] for module in (task, subnet)]
        assert set(losses[0]) == {"cross_entropy", "auxiliary"}
        for name, loss in losses[0].items():
            torch.testing.assert_close(loss, losses[1][name], rtol=1e-9, atol=1e-9)


def test_the_heads_cost_equals_torchs_counter_and_its_parameters() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.network(torch.zeros(1, 3, 64, 96))
    costs = task.costs(task.arch)
    assert counter.get_total_flops() // 2 == costs["body"].macs + costs["head"].macs
    own = sum(p.numel() for name, p in task.network.named_parameters() if not name.startswith("auxiliary"))
    assert own == costs["body"].params + costs["head"].params


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bignas_250m", 28514), ("bignas_350m", 28572), ("bignas_600m", 29679), ("bignas_1000m", 31173)],
)
def test_the_published_nets_cost_what_their_rows_say(name: str, expected: int) -> None:
    from nas_transfer.arch_files import resolve_arch
    from nas_transfer.paths import conf_dir

    table = load_supernet("bignas")
    arch = resolve_arch(name, table.space, [conf_dir() / "archs"])
    sizes = replace(HEAD, channels=512, low_level_channels=48, dilations=(1, 12, 24, 36))
    head = deeplab_cost(table.feature_channels(arch), (512, 1024), 19, sizes)
    assert round((table.body_cost(arch, (512, 1024)).macs + head.macs) / 1e6) == expected


def test_scores_equal_a_count_over_all_pixels() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    batches = [make_batch(), make_batch(40, 56) | {"sample_ids": torch.tensor([5, 6])}]
    batches[1]["labels"][1][:] = 255  # type: ignore[index]
    with torch.no_grad():
        for batch in batches:
            task.update_metrics(batch)
        metrics = task.compute_metrics()
        predicted = [task.predict(image) for batch in batches for image in batch["images"]]
    truth = [labels for batch in batches for labels in batch["labels"]]
    ious, hits = [], 0
    for label in range(4):
        intersection = union = 0
        for found, real in zip(predicted, truth, strict=True):
            valid = real != 255
            intersection += int(((found == label) & (real == label) & valid).sum())
            union += int((((found == label) | (real == label)) & valid).sum())
        ious.append(intersection / union)
        hits += intersection
    labelled = sum(int((real != 255).sum()) for real in truth)
    assert metrics["miou"] == pytest.approx(sum(ious) / 4, abs=1e-6)
    assert [metrics[f"iou/{name}"] for name in "abcd"] == pytest.approx(ious, abs=1e-6)
    assert metrics["pixel_accuracy"] == pytest.approx(hits / labelled, abs=1e-6)
    for image_id, found in zip((3, 4, 5, 6), predicted, strict=True):
        own = [record for record in task.predictions["predictions"] if record["image_id"] == image_id]
        restored = sum(rle.decode(record["segmentation"]).astype(int) * record["category_id"] for record in own) - 1
        assert torch.equal(torch.from_numpy(restored), found)


def test_details_change_no_metric_and_are_kept_only_on_request() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    vocabulary = Vocabulary(tuple("abcd"), (0, 1, 2, 3))
    found = []
    for details in (False, True):
        task.keeps_details = details
        with torch.inference_mode():
            task.update_metrics(make_batch())
        found.append(task.compute_metrics())
        analysis = task.analyse(vocabulary)
        assert (analysis is not None) == details
    assert found[0] == found[1]
    assert analysis is not None
    assert {one.image_id for one in analysis.worst} == {3, 4}
    assert {one.name: one.scores["iou"] for one in analysis.classes} == {
        name: found[0][f"iou/{name}"] for name in "abcd"
    }


def test_a_label_map_survives_cocos_format() -> None:
    labels = torch.randint(4, (9, 13), generator=torch.Generator().manual_seed(0))
    records = to_coco_segments(5, labels)
    restored = sum(rle.decode(record["segmentation"]).astype(int) * record["category_id"] for record in records) - 1
    assert torch.equal(torch.from_numpy(restored), labels)
    assert {record["image_id"] for record in records} == {5}


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_predicted_counts_as_zero() -> None:
    confusion = torch.tensor([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    metrics = scores_of(confusion, ["a", "b", "c"])
    assert metrics["iou/a"] == pytest.approx(0.75)
    assert metrics["iou/b"] == 0.0
    assert "iou/c" not in metrics
    assert metrics["miou"] == pytest.approx(0.375)
    assert metrics["mean_accuracy"] == pytest.approx(0.75)
    assert scores_of(torch.zeros(3, 3), ["a", "b", "c"]) == {}


@pytest.mark.parametrize("size", [(32, 48), (50, 70), (20, 100), (90, 31)])
def test_windows_cover_every_pixel_and_average_where_they_overlap(size: tuple[int, int]) -> None:
    evaluation = SegmentationEvaluation("slide", (32, 48), (20, 30), keep_predictions=False)
    image = torch.rand(3, *size)
    windows: list[tuple[int, ...]] = []

    def identity(part: torch.Tensor) -> torch.Tensor:
        windows.append(tuple(part.shape[2:]))
        return part

    torch.testing.assert_close(slide(identity, image, evaluation)[0], image)
    assert set(windows) == {(min(32, size[0]), min(48, size[1]))}

    numbers = iter(range(1000))
    mean = slide(lambda part: torch.full_like(part, float(next(numbers))), image, evaluation)
    expected, counts = torch.zeros(size), torch.zeros(size)
    number = 0
    for top in sorted({*range(0, max(0, size[0] - 32), 20), max(0, size[0] - 32)}):
        for left in sorted({*range(0, max(0, size[1] - 48), 30), max(0, size[1] - 48)}):
            expected[top : top + 32, left : left + 48] += number
            counts[top : top + 32, left : left + 48] += 1
            number += 1
    torch.testing.assert_close(mean[0, 0], expected / counts)


def test_cross_entropy_counts_labelled_pixels_alone() -> None:
    logits = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.full((1, 6, 8), 255)
    labels[0, 2, 3] = 1
    expected = -torch.log_softmax(logits[0, :, 2, 3], 0)[1]
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), expected)
    assert pixel_cross_entropy(logits, torch.full((1, 6, 8), 255)) == 0


def test_the_smaller_archs_imitate_the_largest_ones_soft_labels() -> None:
    task = make_task().train()
    _, teacher = task.losses(make_batch(), regularise=True, teacher=None)
    losses, own = task.losses(make_batch(), regularise=False, teacher=Teacher(teacher, 1.0))
    assert set(losses) == {"distillation"}
    entropy = -(own.softmax(1) * own.log_softmax(1)).sum(1).mean()
    assert losses["distillation"].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_a_single_image_cannot_train_and_says_so() -> None:
    batch = make_batch()
    alone = {"images": batch["images"][:1], "labels": batch["labels"][:1]}  # type: ignore[index]
    with pytest.raises(ConfigError, match="batch_size=2"):
        make_task().losses(alone, regularise=True, teacher=None)
    with pytest.raises(ConfigError, match="stride"):
        SegmentationEvaluation("slide", (32, 48), (33, 48), keep_predictions=False)


def test_an_image_is_scored_as_the_deployed_network_sees_it() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    image = make_batch(40, 70)["images"][0]  # type: ignore[index]
    padded = torch.nn.functional.pad(image[None].float(), (0, 96 - 70, 0, 64 - 40), value=114)
    deployed = task.deployed()
    with torch.inference_mode():
        (logits,) = deployed.module.eval()(padded)
        assert torch.equal(task.predict(image), logits[0, :, :40, :70].argmax(0))
    assert (deployed.stride, deployed.padding) == (32, 114)
