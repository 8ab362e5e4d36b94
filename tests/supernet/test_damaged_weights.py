"""Files in the place of weights, and weights that no network can be filled with: one sentence each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nas_transfer.arch import SUPERNET
from nas_transfer.errors import WeightsError
from nas_transfer.supernet.weights.reading import read_file, state_of
from nas_transfer.tasks.checkpoint import load_checkpoint, save_checkpoint
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.supernet import public_nets


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        read()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "another space" not in sentence
    return sentence


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an unreadable file"),
        (b"\x80", "an unreadable file"),
        (b"\x80\x02.", "an unreadable file"),
        (b"\x80\x05\x95", "an unreadable file"),
        (b"\x80\x02]", "an unreadable file"),
        (b"hello", "an unreadable file"),
        (bytes(range(256)), "an unreadable file"),
        (b"PK\x03\x04 cut off", "an unreadable file"),
        (b"\x80\x02" + b"(" * 10_000, "an unreadable file"),
        (LFS, "a pointer of Git LFS to it: run git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head>", "a web page: download the file itself"),
        (b"\xef\xbb\xbf \n<html lang='en'>", "a web page: download the file itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page: download the file itself"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert expected in refused(lambda: read_file(path))


def test_every_prefix_of_a_small_file_is_one_sentence(tmp_path: Path) -> None:
    for zipped in (False, True):
        torch.save({"weight": torch.ones(2)}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
        content = (tmp_path / "whole.pt").read_bytes()
        for length in range(0, len(content) - 1, 7):
            (tmp_path / "cut.pt").write_bytes(content[:length])
            refused(lambda: state_of(read_file(tmp_path / "cut.pt"), tmp_path / "cut.pt"))


def sparse(tensor: Tensor) -> Tensor:
    return tensor.to_sparse()


def compressed(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1).to_sparse_csr()


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def complex_numbers(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex64)


def nan(tensor: Tensor) -> Tensor:
    return tensor.index_fill(0, torch.tensor([0]), float("nan"))


def infinite(tensor: Tensor) -> Tensor:
    return tensor.index_fill(0, torch.tensor([0]), float("inf"))


def negative(tensor: Tensor) -> Tensor:
    return tensor.index_fill(0, torch.tensor([0]), -1.0)


def repeated(tensor: Tensor) -> Tensor:
    return torch.zeros(1).expand(10**9)


CHANGES = {
    sparse: "dense", compressed: "dense", quantised: "a quantised one", on_meta: "on the device meta",
    complex_numbers: "complex ones", nan: "finite, got NaN", infinite: "finite, got NaN", negative: "a variance of -1",
    repeated: "1000000000 numbers in 4 bytes",
}  # fmt: skip


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_tensor_that_no_layer_can_hold_is_named(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    path = tmp_path / "public.pth"
    state = public_nets.lite0_state()
    name = next(name for name in state if name.endswith("running_var"))
    state[name] = change(state[name])
    torch.save(state, path)
    sentence = refused(lambda: load_checkpoint(str(path), load_supernet("efficientnet_lite0")))
    assert repr(name) in sentence
    assert CHANGES[change] in sentence


@pytest.fixture
def native(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """A file of this program, and its content."""
    task = ClassificationTask(
        TaskSettings(load_supernet("bignas_nano"), SUPERNET, 6), label_smoothing=0.0, dropout=0.0
    )  # fmt: skip
    path = tmp_path / "weights.pt"
    save_checkpoint(path, task, parent=None, metrics={}, versions={}, stage="pretrain", config_sha256="")
    return path, torch.load(path, weights_only=True)


@pytest.mark.parametrize("change", list(CHANGES))
def test_the_same_tensor_in_a_file_of_this_program_is_named(
    native: tuple[Path, dict[str, dict[str, Tensor]]], change: Callable[[Tensor], Tensor]
) -> None:
    path, content = native
    name = next(name for name in content["body"] if name.endswith("running_var"))
    content["body"][name] = change(content["body"][name])
    torch.save(content, path)
    assert CHANGES[change] in refused(lambda: load_checkpoint(str(path), load_supernet("bignas_nano")))


@pytest.mark.parametrize("wrong", [None, 3, "word", [1], {1: 2}])
def test_an_entry_of_another_type_is_one_sentence(native: tuple[Path, dict[str, object]], wrong: object) -> None:
    path, content = native
    for name in [*content, "another"]:
        if isinstance(wrong, type(content.get(name, ...))) or (name in ("arch", "calibrated") and wrong == {1: 2}):
            continue  # of the right type; an arch is checked when it is used
        torch.save({**content, name: wrong}, path)
        refused(lambda: load_checkpoint(str(path), load_supernet("bignas_nano")))


def lose_a_tensor(state: dict[str, Tensor]) -> None:
    state.pop(sorted(state)[5])


def cut_a_tensor(state: dict[str, Tensor]) -> None:
    name = sorted(state)[5]
    state[name] = state[name][:-1]


def add_a_tensor(state: dict[str, Tensor]) -> None:
    state["unknown.weight"] = torch.ones(2)


@pytest.mark.parametrize("damage", [lose_a_tensor, cut_a_tensor, add_a_tensor])
def test_a_damaged_file_is_not_called_one_of_another_space(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None]
) -> None:
    path = tmp_path / "public.pth"
    state = public_nets.lite0_state()
    damage(state)
    torch.save(state, path)
    assert "damaged, so download it again" in refused(
        lambda: load_checkpoint(str(path), load_supernet("efficientnet_lite0"))
    )


def test_whole_numbers_do_not_fill_a_layer_of_other_numbers(tmp_path: Path) -> None:
    path = tmp_path / "public.pth"
    state = public_nets.lite0_state()
    name = next(name for name in state if name.endswith("running_mean"))
    state[name] = state[name].to(torch.int8)
    torch.save(state, path)
    sentence = refused(lambda: load_checkpoint(str(path), load_supernet("efficientnet_lite0")))
    assert "must be of the type torch.float32, got torch.int8" in sentence
