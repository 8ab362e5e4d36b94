"""A wrong value for any key of any stage ends before anything starts, with exit code 2 and one sentence."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nas_transfer import cli
from nas_transfer.errors import ConfigError
from nas_transfer.stages.config import factory, reader
from nas_transfer.stages.config.entry import SHARED_KEYS, record_of
from nas_transfer.stages.config.factory import Factory
from tests.stages.test_run_directory import composed
from tests.stages.wrong_values import Case, wrong_values
from tests.test_cli import forked, sentence

SEARCH = ["weights=x", "objective=[score,macs,params,latency_ms,latency_by_table,memory_mib]"]
FULL = [
    "search.trade_off={second: macs, ratio: 0.1, max_score_key: 1.0}", "search.constraints={macs: {min: 1, max: 2}}",
    "search.frozen={resolution: 48}", "pick_under={macs: 3}",
]  # fmt: skip
COMMANDS: Mapping[str, Sequence[str]] = {
    **{task: ["stage=finetune", f"task=shapes_{task}"] for task in ("det", "insseg", "pose", "seg")},
    "cls": ["stage=pretrain", "task=shapes_cls"],
    "several": ["stage=finetune", "task=shapes_det", "detector=several_shapes"],
    **{name: ["stage=finetune", f"supernet={name}"] for name in ("detnas_nano", "resnet50", "efficientnet_lite0")},
    **{stage: [f"stage={stage}", "weights=x"] for stage in ("evaluate", "export")},
    "predict": ["stage=predict", "weights=x", "images=y"],
    "check": ["stage=check"],
    "profile": ["stage=profile", "preview=2"],
    "report": ["stage=report", "runs_in=[a,b]"],
    "search": ["stage=search", *SEARCH, *FULL],
    "proxy": ["stage=proxy", *SEARCH, *FULL],
    **{name: ["stage=search", "weights=x", f"sampler={name}"] for name in ("evolution", "gp", "nsga2", "nsga3", "tpe")},
}
"""Together these commands read every key, and the arguments of every class in ``conf/``."""
BY_KEY = 1
"""Wrong values of a key that are tried each time."""
MANY = 3
"""Those that the slow test tries; 1000 are all of them, for more than a minute."""


def drawn(cases: Iterator[Case], count: int) -> Iterator[Case]:
    """Some of the wrong values of each key, always the same ones."""
    by_key: dict[str, list[object]] = {}
    for path, value in cases:
        by_key.setdefault(path, []).append(value)
    for path, values in by_key.items():
        yield from ((path, value) for value in random.Random(path).sample(values, min(count, len(values))))


def ending(error: ConfigError, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code and the output with which the command line ends after an error."""
    with pytest.raises(SystemExit) as ended:
        cli._fail(cli._composition_sentence(error))
    return ended.value.code, capsys.readouterr().err


def wrongly_taken(
    command: Sequence[str], count: int, seen: set[str], capsys: pytest.CaptureFixture[str]
) -> list[tuple[str, object, str]]:
    """Wrong values of a command that are accepted, or refused otherwise than by a sentence that names the key."""
    cfg = composed(*command, "name=mine")
    record = record_of(cfg)
    reader.read(cfg, record, SHARED_KEYS)  # the command itself is right
    OmegaConf.set_struct(cfg, False)
    found: list[tuple[str, object, str]] = []
    for path, value in drawn(wrong_values(cfg, record), count):
        if f"{path}={value!r}" in seen:
            continue
        seen.add(f"{path}={value!r}")
        parent, _, last = path.rpartition(".")
        was_there = last in (OmegaConf.select(cfg, parent) if parent else cfg)
        before = OmegaConf.select(cfg, path, throw_on_missing=False)
        OmegaConf.update(cfg, path, value, merge=False, force_add=True)
        try:
            reader.read(cfg, record_of(cfg), SHARED_KEYS)
            found.append((path, value, "accepted"))
        except ConfigError as error:
            code, text = ending(error, capsys)
            named = path.rpartition(".")[2].partition("[")[0] in text
            if code != cli.EXIT_BAD_INPUT or text.count("\n") != 1 or not named or not text.startswith("error: "):
                found.append((path, value, text))
        except Exception as error:  # whatever it is, it would be a traceback
            found.append((path, value, repr(error)))
        OmegaConf.update(cfg, path, before, merge=False, force_add=True)
        if not was_there:
            OmegaConf.select(cfg, parent).pop(last)
    reader.read(cfg, record, SHARED_KEYS)  # and right again
    return found


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """What earlier commands have tried."""
    return set()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_wrong_value_of_any_key_is_one_sentence_that_names_it(
    command: str, seen: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrongly_taken(COMMANDS[command], BY_KEY, seen, capsys) == []


@pytest.mark.nightly
def test_every_wrong_value_of_every_key_is_one_sentence_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    seen: set[str] = set()
    found = [fault for command in COMMANDS.values() for fault in wrongly_taken(command, MANY, seen, capsys)]
    assert found == []
    assert len(seen) > 500


def test_keys_of_records_and_of_classes_have_wrong_values() -> None:
    keys = set()
    for command in ("det", "proxy"):
        cfg = composed(*COMMANDS[command], "name=mine")
        keys |= {path for path, _ in wrong_values(cfg, record_of(cfg))}
    assert {"seed", "search.trials", "proxy.keep", "task.recipe.lr", "data.split.search_fraction", "name"} <= keys
    assert len(keys) > 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trainer.max_steps=0"], "trainer.max_steps must be above 0 or null, got 0"),
        (["seed=abc"], "seed must be a whole number, got 'abc'"),
        (["task.recipe.lr=1e30"], "task.recipe.lr must be at most 1000, got 1e+30"),
        (["task.recipe.lr=nan"], "task.recipe.lr must be a finite number, got nan"),
        (["stage=export", "weights=x", "stage.compared_images=0"], "stage.compared_images must be at least 1, got 0"),
        (["stage=search", "weights=x", "pick=foo"], "pick must be a known choice, got 'foo'"),
        (["stage=search", "weights=x", "objective=[score,score]"], "objective must not repeat a choice, got score"),
        (
            ["stage=search", "task=shapes_cls", "data.draw.num_train=6", "data.draw.num_val=2", "weights=x"],
            "x does not",
        ),
        (["name="], "name must not be empty"),
        (["name=.."], "name must be the name of a folder"),
        (["name=" + 300 * "a"], "cannot be made (File name too long)"),
        (["trainer.strategy=foo"], "trainer.strategy must be one of auto, "),
        (["weights_format=foo"], "weights_format must be one of auto, native, "),
    ],
)
def test_a_wrong_command_leaves_no_run_behind(tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in sentence(forked(tmp_path, *arguments, code=2))
    assert not list(tmp_path.rglob("trials")) + list(tmp_path.rglob("inputs.json"))
    if "x does not" not in expected:
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_was_found_sound_is_built_once_and_what_was_not_each_time() -> None:
    built: list[float] = []

    def half(value: float) -> float:
        built.append(value)
        if value < 0:
            raise ValueError("value must not be negative")
        return value / 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "half", half, raising=False)
        patch.setattr(factory, "_SOUND", set())
        sound, faulty, other = (
            Factory({"_target_": f"{factory.__name__}.half", "value": value}, "half") for value in (1.0, -1.0, 2.0)
        )
        assert [sound.faults(True, {}), sound.faults(True, {}), other.faults(True, {})] == [[], [], []]
        first, second = faulty.faults(True, {}), faulty.faults(True, {})
    assert first == second
    assert "must not be negative" in first[0]
    assert built == [1.0, 2.0, -1.0, -1.0]
