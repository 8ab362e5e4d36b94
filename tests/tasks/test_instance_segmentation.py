"""The mask head: costs against torch's counter, masks that survive the way into COCO's format, missing masks."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.tasks.coco_metrics import encode_masks, evaluate_coco, to_coco_masks
from nas_transfer.tasks.instance_segmentation import InstanceSegmentationTask, MaskDetectorSize
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.tasks.test_detection import SIZES

MASK_SIZES = MaskDetectorSize(**asdict(SIZES), mask_channels=12, mask_convolutions=4)


def make_task(arch: ArchOrSupernet = SUPERNET) -> InstanceSegmentationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), arch, num_classes=3)
    return InstanceSegmentationTask(settings, category_ids=[1, 2, 3], detector=MASK_SIZES)


def test_the_mask_heads_cost_equals_torchs_counter() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    heads = task.network.roi_heads
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        nn.Sequential(heads.mask_head, heads.mask_predictor)(torch.zeros(SIZES.detections, 16, 14, 14))
    costs = task.costs(task.arch)
    assert counter.get_total_flops() // 2 == costs["mask_head"].macs
    assert sum(cost.params for cost in costs.values()) == sum(p.numel() for p in task.network.parameters())


def test_training_gives_a_mask_loss_and_an_extracted_subnet_has_the_same() -> None:
    task = make_task().double().train()
    arch = task.table.space.sample(np.random.default_rng(3))
    subnet = task.extract(arch)
    task.set_arch(arch)
    masks = torch.zeros(1, 64, 80, dtype=torch.uint8)
    masks[:, 5:50, 5:40] = 1
    target = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]).double(), "labels": torch.tensor([2]), "masks": masks}
    batch = {"images": [torch.randint(256, (3, 64, 80)).double()], "targets": [target]}
    losses = []
    for module in (task, subnet):
        torch.manual_seed(1)
        losses.append(module.losses(batch, regularise=True, teacher=None)[0]["loss_mask"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
    assert 0.1 < losses[0] < 5
    with pytest.raises(ConfigError, match="with_masks=true"):
        task.losses(
            batch | {"targets": [{key: target[key] for key in ("boxes", "labels")}]}, regularise=True, teacher=None
        )


def test_a_mask_that_fills_its_box_is_pasted_exactly_there() -> None:
    output = {
        "boxes": torch.tensor([[10.0, 20.0, 40.0, 60.0]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.5]),
        "masks": torch.ones(1, 1, 28, 28),
    }  # fmt: skip
    (result,) = to_coco_masks([7], [output], [encode_masks(output, (100, 80))], [4, 9])
    pasted = rle.decode(result["segmentation"])
    assert (result["image_id"], result["category_id"], result["score"]) == (7, 9, 0.5)
    assert pasted.shape == (100, 80)
    assert pasted[21:60, 11:40].all()
    assert pasted.sum() <= 42 * 32


def test_mask_scores_equal_pycocotools_on_the_records_and_see_what_boxes_do_not() -> None:
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in (1, 2, 3):
        for _ in range(4):
            mask = np.zeros((60, 80), dtype=np.uint8, order="F")
            top, left = rng.integers(0, 30), rng.integers(0, 40)
            mask[top : top + 25, left : left + 30] = rng.random((25, 30)) < 0.7
            encoded = rle.encode(mask)
            encoded["counts"] = encoded["counts"].decode()
            common = {"image_id": image_id, "category_id": 1, "segmentation": encoded}
            annotations.append(
                common | {"id": len(annotations) + 1, "iscrowd": 0, "area": int(mask.sum()),
                          "bbox": rle.toBbox(encoded).tolist()}
            )  # fmt: skip
            noisy = np.asfortranarray(mask ^ (rng.random(mask.shape) < 0.03 * len(results) / 4).astype(np.uint8))
            found = rle.encode(noisy)
            found["counts"] = found["counts"].decode()
            results.append(common | {"segmentation": found, "score": float(rng.random())})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id, "height": 60, "width": 80} for image_id in (1, 2, 3)],
        "categories": [{"id": 1, "name": "one"}], "annotations": annotations,
    }  # fmt: skip
    coco.createIndex()
    ours = evaluate_coco(coco, results, [1, 2, 3], "segm")
    assert "area" not in results[0]  # pycocotools writes into the records that it is given
    direct = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "segm")
    direct.evaluate()
    direct.accumulate()
    direct.summarize()
    assert ours["map"] == pytest.approx(direct.stats[0], abs=1e-9)
    assert ours["mar_100"] == pytest.approx(direct.stats[8], abs=1e-9)
    assert 0.1 < ours["map"] < 0.99
