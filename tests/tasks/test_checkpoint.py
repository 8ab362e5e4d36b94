"""What a training stage leaves behind, and what the next one takes over from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import WeightsError
from nas_transfer.runs import file_sha256
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, inherit, load_checkpoint, load_network, save_checkpoint
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.supernet import public_nets
from tests.tasks.test_pose import HEAD, SIZE

BGR = Preprocessing((10, 20, 30), (2, 3, 4), channel_order="bgr", interpolation="bilinear")


def settings(table: SupernetTable, arch: ArchOrSupernet, num_classes: int) -> TaskSettings:
    return TaskSettings(table, arch, num_classes)


def classifier(table: SupernetTable, arch: ArchOrSupernet = SUPERNET, num_classes: int = 6) -> ClassificationTask:
    return ClassificationTask(settings(table, arch, num_classes), label_smoothing=0.0, dropout=0.0)


def save(task: ClassificationTask, folder: Path, parent: Checkpoint | None = None) -> Path:
    folder.mkdir()
    save_checkpoint(
        folder / "weights.pt", task, parent=parent, metrics={"top1": 0.5}, versions={"torch": "2"}, stage="pretrain",
        config_sha256="c0ffee",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def table() -> SupernetTable:
    return replace(load_supernet("efficientnet_lite0"), preprocessing=BGR)


def test_a_run_leaves_its_preprocessing_metrics_versions_and_ancestors(table: SupernetTable, tmp_path: Path) -> None:
    torch.save(public_nets.lite0_state(), tmp_path / "public.pth")
    public = load_checkpoint(str(tmp_path / "public.pth"), table)
    first = load_checkpoint(str(save(classifier(table), tmp_path / "first", public)), table)
    second = load_checkpoint(str(save(classifier(table), tmp_path / "second", first)), table)
    assert (second.preprocessing, second.metrics, second.versions) == (BGR, {"top1": 0.5}, {"torch": "2"})
    assert [parent.file for parent in second.provenance] == [str(public.path), str(first.path)]
    assert [parent.sha256 for parent in second.provenance] == [file_sha256(public.path), file_sha256(first.path)]
    assert "Apache-2.0" in second.provenance[0].licence
    assert second.provenance[0].format == "efficientnet_lite"
    assert second.provenance[1].config_sha256 == "c0ffee"


def test_the_file_is_read_by_torch_without_unpickling_an_object(table: SupernetTable, tmp_path: Path) -> None:
    content = torch.load(save(classifier(table), tmp_path / "run") / "weights.pt", weights_only=True)
    assert content["format"] == "nas_transfer/3"


def test_a_subnet_takes_its_part_of_a_supernet_kernel_transforms_included(tmp_path: Path) -> None:
    table = load_supernet("efficientnet_lite0")
    torch.manual_seed(0)
    supernet = classifier(table).eval()
    for name, parameter in supernet.network.named_parameters():
        if "kernel_transforms" in name:
            nn.init.normal_(parameter, std=0.3)
    checkpoint = load_checkpoint(str(save(supernet, tmp_path / "run")), table)
    arch = table.space.smallest()
    subnet = classifier(table, arch).eval()
    load_network(subnet, checkpoint)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(subnet(images), supernet.extract(arch)(images))


def test_other_classes_take_over_all_but_the_last_layer(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    torch.manual_seed(0)
    parent = classifier(table)
    checkpoint = load_checkpoint(str(save(parent, tmp_path / "run")), table)
    for arch in (SUPERNET, table.space.largest()):
        child = classifier(table, arch, num_classes=3)
        before = child.network.state_dict()["head.classifier.weight"].clone()
        assert inherit(child, checkpoint) == ["head.classifier.weight", "head.classifier.bias"]
        ours, theirs = child.network.state_dict(), parent.network.state_dict()
        assert torch.equal(ours["head.final_expand.conv.weight"], theirs["head.final_expand.conv.weight"])
        assert ours["head.classifier.weight"].shape == before.shape
        with pytest.raises(WeightsError, match="with 3 classes"):
            load_network(child, checkpoint)


def test_another_task_takes_over_the_body_alone(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    torch.manual_seed(0)
    parent = classifier(table)
    checkpoint = load_checkpoint(str(save(parent, tmp_path / "run")), table)
    arch = table.space.smallest()
    child = PoseTask(settings(table, arch, 4), head=HEAD, input_size=SIZE)
    head = child.network.state_dict()
    anew = inherit(child, checkpoint)
    after = child.network.state_dict()
    assert anew == [name for name in after if not name.startswith("body.")] != []
    assert all(torch.equal(head[name], after[name]) for name in anew)
    expected = parent.extract(arch).body.state_dict()
    assert all(torch.equal(tensor, after[f"body.{name}"]) for name, tensor in expected.items())


def test_weights_of_another_arch_space_or_format_are_refused_by_name(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    run = save(classifier(table, table.space.largest()), tmp_path / "run")
    with pytest.raises(WeightsError, match="set supernet=bignas_nano"):
        load_checkpoint(str(run), load_supernet("efficientnet_lite0"))
    with pytest.raises(WeightsError, match="tensor 'first_conv"):
        inherit(classifier(table, table.space.smallest()), load_checkpoint(str(run), table))
    with pytest.raises(WeightsError, match="this program's own format"):
        load_checkpoint(str(run), table, "detnas")
    torch.save(public_nets.lite0_state(), tmp_path / "public.pth")
    with pytest.raises(WeightsError, match="of another format"):
        load_checkpoint(str(tmp_path / "public.pth"), table, "native")
    torch.save({"format": "nas_transfer/1"}, tmp_path / "old.pt")
    with pytest.raises(WeightsError, match=r"got the format nas_transfer/1: train the network again"):
        load_checkpoint(str(tmp_path / "old.pt"), table)
    torch.save({"format": "nas_transfer/3"}, tmp_path / "part.pt")
    with pytest.raises(WeightsError, match=r"part\.pt does not hold the entries of the format nas_transfer/3"):
        load_checkpoint(str(tmp_path / "part.pt"), table)
