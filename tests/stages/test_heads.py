"""Which heads a task takes: a wrong pair is one sentence, before anything else about it is said."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from nas_transfer.cli import sentences
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.config.entry import begin_run
from nas_transfer.stages.config.heads import fits, heads_of
from nas_transfer.tasks.keypoint_head import KeypointHead
from nas_transfer.tasks.segmentation_head import SegmentationHead
from nas_transfer.tasks.simcc import SimccSize

DETECTORS = ["coco", "fcos", "fcos_separable", "several", "several_shapes", "shapes", "small", "ssdlite"]
SAME_CLASS = ["coco", "shapes", "small"]
POSE, PIXELS = (
    ["heatmaps", "heatmaps_shapes", "heatmaps_small", "simcc"],
    ["deeplab", "deeplab_shapes", "deeplab_small"],
)
TAKES = {
    "det": {"detector": DETECTORS}, "insseg": {"detector": SAME_CLASS},
    "pose": {"head": sorted([*POSE, "several_pose"])},
    "seg": {"head": [*PIXELS, "lraspp", "several_seg"]}, "cls": {},
}  # fmt: skip


def composed(*overrides: str) -> DictConfig:
    with sentences(overrides), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def begin(*overrides: str) -> None:
    cfg = composed(*overrides)
    with begin_run(cfg, cfg.hydra, imports=False):
        pass


@pytest.mark.parametrize("kind", list(TAKES))
def test_each_task_takes_the_heads_of_its_kind(kind: str) -> None:
    assert heads_of(composed(f"task=shapes_{kind}")) == TAKES[kind]


@pytest.mark.parametrize(
    ("arguments", "takes"),
    [
        (["task=small_seg", "head=simcc"], "head=deeplab, deeplab_shapes, deeplab_small, lraspp or several_seg"),
        (["task=shapes_pose", "head=lraspp"], "head=heatmaps, heatmaps_shapes, heatmaps_small, several_pose or simcc"),
        (["stage=proxy", "task=small_pose", "detector=fcos"], "head=heatmaps, "),
        (["task=small_det", "head=lraspp"], "detector=coco, fcos, "),
        (["task=shapes_insseg", "detector=fcos"], "detector=coco, shapes or small"),
        (["task=shapes_cls", "stage=profile", "head=simcc"], "has no head to choose"),
    ],
)
def test_a_wrong_pair_is_one_sentence_with_the_head_the_task_and_the_heads_it_takes(
    tmp_path: Path, arguments: list[str], takes: str
) -> None:
    with pytest.raises(ConfigError) as error:
        begin(*arguments, f"runs={tmp_path}")
    assert len(error.value.faults) == 1
    for part in (next(one for one in arguments if one.startswith("task=")), arguments[-1], takes):
        assert part in str(error.value)
    assert not list(tmp_path.rglob("*.json"))


def test_a_class_fits_a_protocol_by_its_members_alone() -> None:
    assert fits(SimccSize, KeypointHead)
    assert not fits(SimccSize, SegmentationHead)
    assert not fits(int, KeypointHead)
