"""ResNet-50 as a baseline: torchvision's own net, its costs by torch's counter, its file by name."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.stages.finetune import run as train
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.resnet.table import ResNetTable
from nas_transfer.tasks.checkpoint import load_checkpoint
from tests.conftest import load_supernet


@pytest.fixture(scope="module")
def table() -> ResNetTable:
    found = load_supernet("resnet50")
    assert isinstance(found, ResNetTable)
    return found


def test_costs_are_those_that_torch_counts(table: ResNetTable) -> None:
    arch, net = table.space.largest(), resnet50(weights=None).eval()
    for size in ((224, 224), (96, 160)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.zeros(1, 3, *size))
        cost = table.body_cost(arch, size) + table.classifier_cost(arch, size, 1000)
        assert cost.macs == counter.get_total_flops() // 2
        assert cost.params == sum(parameter.numel() for parameter in net.parameters())
        totals = table.body_totals([arch, arch], [size, size])
        assert totals.macs.tolist() == [table.body_cost(arch, size).macs] * 2


def test_a_torchvision_file_gives_the_same_net(table: ResNetTable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = resnet50(weights=None).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    checkpoint = load_checkpoint(str(tmp_path / "resnet50.pth"), table)
    assert checkpoint.format == "torchvision_resnet"
    body, head = build_body(table, table.space.largest()).eval(), build_classifier(table, 1000).eval()
    body.load_state_dict(checkpoint.body)
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in checkpoint.rest.items()})
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        maps = body(images)
        torch.testing.assert_close(head(maps[-1]), net(images))
    assert [tuple(features.shape[1:]) for features in maps] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)]


def test_it_trains_as_the_backbone_of_a_detector(tmp_path: Path) -> None:
    overrides = [
        "task=shapes_det",
        "supernet=resnet50",
        "arch=max",
        "trainer.max_steps=1",
        f"data.root={tmp_path}/data",
    ]
    small = ["data.draw.num_train=4", "data.draw.num_val=2", "data.batch_size=2", "task.build.detector.min_size=64"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*overrides, *small, "trainer.enable_progress_bar=false"])
    result = train(cfg, tmp_path)
    assert result is not None
    assert result.costs.params["body"] == sum(t.numel() for t in resnet50(weights=None).parameters()) - 2049 * 1000
