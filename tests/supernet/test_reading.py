"""Files of public weights: what is read of them, and that nothing in them is ever run."""

import io
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nas_transfer.errors import WeightsError
from nas_transfer.supernet.weights.reading import read_file, state_of
from tests.supernet import public_nets

STATE = {"first_conv.conv.conv.weight": torch.ones(2), "classifier.linear.linear.bias": torch.zeros(3)}


class Bomb:
    """An object whose unpickling would run a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, (f"touch {self.file}",)


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary whose items are its attributes, as the configurations of AttentiveNAS's code are."""

    def __init__(self, *args: object, **items: object) -> None:
        super().__init__(*args, **items)
        self.__dict__ = self


@pytest.fixture
def config_classes(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Attributes]]:
    """The names under which AttentiveNAS's files hold their configuration, importable during the test."""
    module = ModuleType("utils.config")
    classes = {name: type(name, (Attributes,), {"__module__": "utils.config"}) for name in ("AttrDict", "Config")}
    vars(module).update(classes)
    monkeypatch.setitem(sys.modules, "utils", ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "utils.config", module)
    return classes


def attentivenas_content(args: object) -> dict[str, object]:
    """The entries of a file of AttentiveNAS, ``utils/saver.py`` of its code."""
    return {
        "epoch": 360, "args": args, "state_dict": OrderedDict((f"module.{name}", t) for name, t in STATE.items()),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0], "group_name": "weight"}]},
        "lr_scheduler": {"max_iters": 10, "warmup_method": "linear", "base_lrs": [0.1]},
    }  # fmt: skip


def assert_read(path: Path) -> None:
    found = state_of(read_file(path), path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def forget_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the configuration's classes impossible to import, as they are for a user."""
    for name in ("utils.config", "utils"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_file_with_a_namespace_is_read_and_its_prefix_removed(tmp_path: Path) -> None:
    args = Namespace(arch="attentive_nas", supernet_config=Namespace(resolutions=[192, 288]))
    torch.save(attentivenas_content(args), tmp_path / "public.pth.tar")
    assert_read(tmp_path / "public.pth.tar")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_with_attentivenas_own_configuration_is_read_without_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_classes: dict[str, type[Attributes]], zipped: bool
) -> None:
    attributes, config = config_classes["AttrDict"], config_classes["Config"]
    args = config(arch="attentive_nas", supernet_config=attributes(resolutions=[192, 288], mb1=attributes(c=[16, 24])))
    args.gpu = 0  # type: ignore[attr-defined]
    path = tmp_path / "public.pth.tar"
    torch.save(attentivenas_content(args), path, _use_new_zipfile_serialization=zipped)  # the authors save False
    forget_config(monkeypatch)
    assert_read(path)
    found = read_file(path)
    assert isinstance(found, dict)
    assert type(found["args"]) is OrderedDict
    assert found["args"]["supernet_config"] == {"resolutions": [192, 288], "mb1": {"c": [16, 24]}}
    assert found["args"]["gpu"] == 0


def test_a_class_of_the_configurations_name_is_never_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_classes: dict[str, type[Attributes]]
) -> None:
    path = tmp_path / "public.pth.tar"
    torch.save(attentivenas_content(config_classes["Config"](a=1)), path)

    def fail(self: object, *args: object) -> None:
        raise AssertionError("the class in the module was used")

    for name in ("__init__", "__setstate__", "__setitem__"):
        monkeypatch.setattr(config_classes["Config"], name, fail, raising=False)
    assert_read(path)


def bomb(ran: Path) -> object:
    return Bomb(ran)


def bomb_in_a_configuration(ran: Path) -> object:
    return sys.modules["utils.config"].Config(arch="attentive_nas", deep=[{"bomb": Bomb(ran)}])


def class_of_another_module(ran: Path) -> object:
    return io.StringIO("utils.config")


def other_name_in_the_configurations_module(ran: Path) -> object:
    loader = type("Loader", (Attributes,), {"__module__": "utils.config"})
    vars(sys.modules["utils.config"])["Loader"] = loader
    return loader(a=1)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "make", [bomb, bomb_in_a_configuration, class_of_another_module, other_name_in_the_configurations_module]
)
def test_an_object_of_another_class_is_refused_and_nothing_is_run(
    tmp_path: Path, config_classes: dict[str, type[Attributes]], make: Callable[[Path], object], zipped: bool
) -> None:
    assert config_classes
    path = tmp_path / "bomb.pth"
    content = {"state_dict": {"weight": torch.ones(1)}, "args": make(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=f"could run code.*torch.load\\('{path}'"):
        read_file(path)
    assert not (tmp_path / "ran").exists()


def written_pickle(module: str, name: str, rest: bytes) -> bytes:
    """A pickle of protocol 2 that names a global and goes on with these opcodes."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + rest + b"."


@pytest.mark.parametrize(
    ("module", "name", "rest"),
    [
        ("os", "system", b"X\x0a\x00\x00\x00touch 'ran'\x85R"),
        ("posix", "system", b"X\x0a\x00\x00\x00touch 'ran'\x85R"),
        ("builtins", "eval", b"X\x0f\x00\x00\x00open('ran', 'w')\x85R"),
        ("builtins", "getattr", b"cutils.config\nConfig\nX\x07\x00\x00\x00__new__\x86R"),
        ("utils.config", "Config.__new__", b")R"),
        ("utils.config", "Config", b"X\x0a\x00\x00\x00touch 'ran'\x85R"),
        ("utils.config", "Config", b"X\x0a\x00\x00\x00touch 'ran'\x85\x81"),
        ("utils.config", "Config", b"}X\x07\x00\x00\x00__new__cos\nsystem\nsb"),
    ],
    ids=["os", "posix", "eval", "getattr", "attribute", "call", "new", "state of the class"],
)
def test_a_hostile_pickle_is_refused_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, rest: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    path.write_bytes(magic + pickle.dumps(system, 2) + written_pickle(module, name, rest) + pickle.dumps([], 2))
    with pytest.raises(WeightsError):
        read_file(path)
    assert not (tmp_path / "ran").exists()


def test_a_stand_in_is_only_a_dictionary_whatever_is_put_into_it(tmp_path: Path) -> None:
    state = b"}X\x03\x00\x00\x00getK\x01s"  # its attribute "get" becomes a number
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
    path = tmp_path / "hostile.pth"
    content = written_pickle("utils.config", "Config", b")\x81" + state + b"b")
    path.write_bytes(magic + pickle.dumps(system, 2) + content + pickle.dumps([], 2))
    assert type(read_file(path)) is OrderedDict


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save(public_nets.lite0_state(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-20000])
    with pytest.raises(WeightsError, match=r"cut\.pth must be a complete checkpoint, got an unreadable file"):
        read_file(tmp_path / "cut.pth")


@pytest.mark.slow
def test_the_advice_for_a_file_of_a_class_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re
    import subprocess

    code = tmp_path / "code"
    code.mkdir()
    (code / "mine.py").write_text("class Settings:\n    pass\n")
    make = (
        "import torch, mine; torch.save({'state_dict': {'w': torch.ones(2)}, 'args': mine.Settings()}, '../public.pth')"
    )
    subprocess.run([sys.executable, "-c", make], cwd=code, check=True)
    with pytest.raises(WeightsError) as caught:
        read_file(tmp_path / "public.pth")
    found = re.search(r'python -c "(.*)"', str(caught.value))
    assert found is not None
    subprocess.run([sys.executable, "-c", found[1]], cwd=code, check=True)
    converted: dict[str, Tensor] = state_of(read_file(code / "tensors.pt"), code / "tensors.pt")
    assert converted["w"].tolist() == [1, 1]
