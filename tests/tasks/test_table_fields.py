"""DetNAS's channel shuffle stays with the weights: from a public file through every step that follows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import WeightsError
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import (
    Checkpoint,
    inherit,
    load_checkpoint,
    load_network,
    save_checkpoint,
    table_of_weights,
)
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.task import Task, TaskSettings
from tests.conftest import load_supernet
from tests.supernet import public_nets
from tests.supernet.detnas_modules import DetNAS
from tests.tasks.test_pose import HEAD, SIZE

STAGES = public_nets.DETNAS_NANO_STAGES
IMAGES = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def table() -> SupernetTable:
    return load_supernet("detnas_nano")


@pytest.fixture
def public(tmp_path: Path) -> Path:
    torch.save({"state_dict": public_nets.detnas_state(STAGES, 128)}, tmp_path / "public.pkl")
    return tmp_path / "public.pkl"


def classifier(table: SupernetTable, arch: ArchOrSupernet = SUPERNET, num_classes: int = 1000) -> ClassificationTask:
    return ClassificationTask(TaskSettings(table, arch, num_classes), label_smoothing=0.0, dropout=0.0)


def saved(task: Task, file: Path, parent: Checkpoint | None = None) -> Path:
    save_checkpoint(file, task, parent=parent, metrics={}, versions={}, stage="pretrain", config_sha256="c0ffee")
    return file


def loaded(file: Path, table: SupernetTable, arch: ArchOrSupernet = SUPERNET) -> ClassificationTask:
    """The task of a file as a stage builds it."""
    checkpoint = load_checkpoint(str(file), table)
    task = classifier(table_of_weights(table, checkpoint), arch).double()
    load_network(task, checkpoint)
    return task.eval()


def authors_network(method: int) -> DetNAS:
    network = DetNAS(16, STAGES, 128, 1000, method)
    network.load_state_dict(public_nets.detnas_state(STAGES, 128))
    return network.double()


def agree(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_saved_extracted_and_calibrated_networks_compute_what_the_public_file_does(
    table: SupernetTable, public: Path, tmp_path: Path
) -> None:
    images = IMAGES.double().flip(1)  # the public network takes BGR values in 0-255
    arch = table.space.from_dict({"resolution": 64, "op": [2, 1, 2, 0, 3, 1, 1, 2, 3, 0]})
    network = authors_network(1).eval()
    expected = network(images, arch.group("op")).detach()

    supernet = loaded(public, table)
    native = loaded(saved(supernet.float(), tmp_path / "supernet.pt"), table)
    for task in (supernet.double(), native, loaded(tmp_path / "supernet.pt", table, arch), loaded(public, table, arch)):
        subnet = task.extract(arch) if task.is_supernet else task
        agree(subnet.network(images).detach(), expected)

    subnet = native.extract(arch)
    subnet.calibrate([{"images": IMAGES, "labels": torch.zeros(4, dtype=torch.long)}])
    again = loaded(saved(subnet, tmp_path / "subnet.pt"), table, arch)
    network.train()  # statistics of one batch: those of training mode
    for calibrated in (subnet, again):
        agree(calibrated.network(images).detach(), network(images, arch.group("op")).detach())


def test_another_task_inherits_the_method_with_the_body(table: SupernetTable, public: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(public), table)
    arch = table.space.largest()
    child = PoseTask(TaskSettings(table_of_weights(table, checkpoint), arch, 4), head=HEAD, input_size=SIZE)
    inherit(child, checkpoint)
    expected = authors_network(1).eval().maps(IMAGES.double(), arch.group("op"))
    for found, wanted in zip(child.double().eval().body(IMAGES.double()), expected, strict=True):
        agree(found.detach(), wanted.detach())
    kept = load_checkpoint(str(saved(child, tmp_path / "pose.pt", checkpoint)), table)
    assert kept.table_fields == {"channel_shuffle_method": 1}


def test_networks_of_new_weights_use_method_2_and_so_do_files_that_do_not_say(
    table: SupernetTable, tmp_path: Path
) -> None:
    file = saved(classifier(table), tmp_path / "new.pt")
    assert load_checkpoint(str(file), table).table_fields == {"channel_shuffle_method": 2}
    content = torch.load(file, weights_only=True)
    del content["table_fields"]
    torch.save(content, tmp_path / "old.pt")
    other = replace(table, channel_shuffle_method=1)  # type: ignore[type-var]
    for name in ("new.pt", "old.pt"):
        checkpoint = load_checkpoint(str(tmp_path / name), other)
        assert table_of_weights(other, checkpoint).channel_shuffle_method == 2  # type: ignore[attr-defined]


def test_weights_are_not_loaded_into_a_network_with_another_method(table: SupernetTable, public: Path) -> None:
    checkpoint = load_checkpoint(str(public), table)
    for arch in (SUPERNET, table.space.largest()):
        with pytest.raises(WeightsError, match=r"with \{'channel_shuffle_method': 1\}, got .*: 2"):
            load_network(classifier(table, arch), checkpoint)


def test_a_file_with_an_unknown_field_is_refused_by_its_name(table: SupernetTable, tmp_path: Path) -> None:
    content = torch.load(saved(classifier(table), tmp_path / "new.pt"), weights_only=True)
    content["table_fields"]["groups"] = 3
    torch.save(content, tmp_path / "newer.pt")
    with pytest.raises(WeightsError, match="'groups': update this program"):
        load_checkpoint(str(tmp_path / "newer.pt"), table)


def test_other_families_have_no_such_fields(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    assert load_checkpoint(str(saved(classifier(table), tmp_path / "new.pt")), table).table_fields == {}
