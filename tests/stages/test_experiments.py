"""The twelve published rows as experiments: their costs, their recipes, and that overrides keep these right."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_arch, build_task, build_training_settings
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import ProfileConfig
from nas_transfer.tasks.task import Task

DETECTION = "faster_rcnn_fpn_1x_coco"
POSE = "topdown_256x192_coco"
SEGMENTATION = "deeplabv3plus_512x1024_40k_cityscapes"
PUBLISHED = {
    DETECTION: {"250m": 127937, "350m": 128063, "600m": 130328, "1000m": 133376},
    POSE: {"250m": 339, "350m": 345, "600m": 449, "1000m": 591},  # of the body alone
    SEGMENTATION: {"250m": 28373, "350m": 28427, "600m": 29527, "1000m": 31015},
}
"""FLOPs columns of the published tables, in millions of multiply-accumulates."""
ROWS = [(net, kind, macs) for kind, rows in PUBLISHED.items() for net, macs in rows.items()]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides])


def build(cfg: DictConfig) -> Task:
    """The task without data and without memory."""
    config = read_config(cfg, ProfileConfig)
    table = config.supernet.build()
    with torch.device("meta"):
        return build_task(config, table, build_arch(config, table), None)


def test_there_is_one_experiment_for_each_row() -> None:
    names = {path.stem for path in (conf_dir() / "experiment").glob("bignas_*m_*.yaml")}
    assert names == {f"bignas_{net}_{kind}" for net, kind, _ in ROWS}


@pytest.mark.parametrize(("net", "kind", "published"), ROWS)
def test_a_preset_costs_what_was_published_to_six_tenths_of_a_percent(net: str, kind: str, published: int) -> None:
    task = build(composed("stage=profile", f"experiment=bignas_{net}_{kind}"))
    assert task.space is task.table.space  # the published heads have no genes
    costs = task.costs(task.arch)
    counted = [costs["body"]] if kind == POSE else list(costs.values())
    assert sum(cost.macs for cost in counted) / 1e6 == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_torchs_counter_agrees_at_the_full_size(kind: str) -> None:
    task = build(composed("stage=profile", f"experiment=bignas_350m_{kind}")).eval()
    size = task.input_size(task.arch)
    image = torch.zeros(1, 3, *size, device="meta")

    def counted(run: object) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()  # type: ignore[operator]
        return counter.get_total_flops() // 2

    costs = {part: cost.macs for part, cost in task.costs(task.arch).items()}
    network = task.network
    if kind != DETECTION:
        assert counted(lambda: network(image)) == sum(costs.values())
        return
    assert counted(lambda: network.backbone(image)) == costs["body"] + costs["neck"]
    # The heads run on five levels and on 1000 boxes; 800 x 1333 is not padded for the count.
    channels = network.backbone.out_channels
    levels = [(200, 334), (100, 167), (50, 84), (25, 42), (13, 21)]
    features = [torch.zeros(1, channels, *level, device="meta") for level in levels]
    boxes = torch.zeros(1000, channels, 7, 7, device="meta")
    heads = network.roi_heads
    head = counted(lambda: network.rpn.head(features))
    head += counted(lambda: heads.box_predictor(heads.box_head(boxes)))
    assert head == costs["head"]


@pytest.mark.parametrize(
    ("kind", "total_batch", "rate"), [(DETECTION, 16, 0.02), (POSE, 512, 0.0005), (SEGMENTATION, 8, 0.01)]
)
def test_a_preset_trains_with_the_recipes_total_batch_and_another_one_moves_the_rate(
    kind: str, total_batch: int, rate: float
) -> None:
    cfg = composed(f"experiment=bignas_600m_{kind}", "data.root=somewhere")
    assert (cfg.trainer.devices, cfg.trainer.sync_batchnorm, cfg.task.recipe.drop_path) == (8, True, 0.2)
    assert cfg.trainer.devices * cfg.data.batch_size * cfg.task.recipe.accumulate == total_batch
    config = read_config(cfg, TaskRunConfig)
    settings = [build_training_settings(config, 10, batch) for batch in (total_batch, total_batch // 8)]
    assert [each.recipe.lr for each in settings] == pytest.approx([rate, rate / 8])


def test_the_command_line_wins_over_an_experiment() -> None:
    cfg = composed(f"experiment=bignas_250m_{SEGMENTATION}", "data=image_labels", "arch=min", "trainer.devices=1")
    assert (cfg.arch, cfg.trainer.devices, cfg.data._target_.rpartition(".")[2]) == ("min", 1, "LabelMapsData")
    assert cfg.data.sources.train_images is None
    assert cfg.task.name == "cityscapes_seg"


@pytest.mark.parametrize(
    ("task", "supernet", "span"),
    [
        ("small_det", "efficientnet_lite0", 10),
        ("small_seg", "efficientnet_lite0", 6),
        ("small_pose", "efficientnet_lite0", 5),
        ("coco_det", "bignas", 10),
        ("coco_insseg", "bignas", 10),
    ],
)
def test_whole_networks_span_costs_that_bodies_alone_do_not(task: str, supernet: str, span: int) -> None:
    def ratio(*overrides: str) -> float:
        cfg = composed("stage=profile", f"task={task}", f"supernet={supernet}", "arch=supernet", *overrides)
        built = build(cfg)
        low, high = built.cost_totals([built.space.smallest(), built.space.largest()]).macs
        return high / low

    assert ratio() > span
    assert ratio("task.build.genes=null") < 3
