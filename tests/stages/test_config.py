"""A stage's configuration: read into a record, with all faults at once; and what of it identifies a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from omegaconf import OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Range
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import config_sha256, identity, read_config, record_of
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import key
from nas_transfer.stages.config.network import ProfileConfig, ReportConfig
from nas_transfer.stages.config.reader import read
from nas_transfer.stages.config.search import ProxyConfig
from nas_transfer.stages.config.training import TrainConfig
from tests.stages.test_run_directory import composed


@dataclass(frozen=True)
class Weight:
    """Something that checks its own values."""

    grams: float

    def __post_init__(self) -> None:
        if self.grams < 0:
            raise ConfigError(f"grams must be at least 0, got {self.grams:g}")


@dataclass(frozen=True, kw_only=True)
class Inner:
    word: str = key()
    low: Annotated[int, Range(minimum=1)] = key()
    high: int = key()

    def faults(self) -> Iterator[str]:
        if self.low > self.high:
            yield f"low must be up to high={self.high}, got {self.low}"


@dataclass(frozen=True, kw_only=True)
class Outer:
    number: Annotated[int, Range(minimum=1, maximum=9)] = key()
    share: float | None = key()
    rule: Literal["a", "b"] = key(identity=False)
    sizes: tuple[int, ...] = key()
    pair: tuple[float, float] = key()
    switch: bool = key()
    limit: int | float | str = key()
    inner: Inner = key()
    caps: Mapping[str, float] | None = key()
    weight: Factory["Weight"] = key(target="tests.stages.test_config.Weight", uncounted=("note",))
    extra: int | None = key(only_with=("switch",))
    rest: Factory["Weight"] = key(rest=True, builds=False)


GOOD: dict[str, object] = {
    "number": 3, "share": 1, "rule": "a", "sizes": [1, 2], "pair": [0.5, 1], "switch": False, "limit": 2.5,
    "inner": {"word": "x", "low": 1, "high": 2}, "caps": {"macs": 3}, "weight": {"grams": 2.0},
    "_target_": "tests.stages.test_config.Weight", "grams": 5.0,
}  # fmt: skip


def outer(**changes: object) -> Outer:
    return read(OmegaConf.create({**GOOD, **changes}), Outer)


def faults(**changes: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        outer(**changes)
    return list(caught.value.faults)


def test_every_kind_of_value_becomes_what_its_field_states() -> None:
    found = outer()
    assert (found.number, found.share, found.sizes, found.pair, found.limit) == (3, 1.0, (1, 2), (0.5, 1.0), 2.5)
    assert isinstance(found.share, float)
    assert found.inner == Inner(word="x", low=1, high=2)
    assert found.caps == {"macs": 3.0}
    assert found.weight.build() == Weight(2.0)
    assert found.rest.build() == Weight(5.0)
    assert found.rest.with_values(grams=7.0).build() == Weight(7.0)
    assert outer(limit=4).limit == 4
    assert outer(limit="${inner.word}").limit == "x"
    assert outer(share=None, caps=None).share is None


def test_a_key_that_another_one_switches_on_is_read_with_it_alone() -> None:
    assert outer(extra="not looked at").extra is None
    assert outer(switch=True, extra=3).extra == 3
    assert faults(switch=True) == ["extra is missing: add extra=... to the command"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"number": 0}, "number must be at least 1, got 0"),
        ({"number": 10}, "number must be at most 9, got 10"),
        ({"number": 1.5}, "number must be a whole number, got 1.5"),
        ({"number": True}, "number must be a whole number, got True"),
        ({"number": None}, "number must be a whole number, got null"),
        ({"number": "???"}, "number is missing: add number=... to the command"),
        ({"number": "${inner.none}"}, "number cannot be resolved: Interpolation key 'inner.none' not found"),
        ({"share": "much"}, "share must be a number, got 'much'"),
        ({"rule": "c"}, "rule must be a known choice, got 'c': use rule=a or rule=b"),
        ({"sizes": [1, "x"]}, "sizes[1] must be a whole number, got 'x'"),
        ({"sizes": 3}, "sizes must be a list, each item a whole number, got 3"),
        ({"pair": [1]}, "pair must be a list of 2 values, got [1]"),
        ({"switch": "yes"}, "switch must be true or false, got 'yes'"),
        ({"limit": [1]}, "limit must be a whole number or a number or a word, got [1]"),
        ({"inner": 3}, "inner must be a mapping, got 3"),
        ({"inner": {"word": "x", "low": 3, "high": 2}}, "low must be up to high=2, got 3"),
        (
            {"inner": {"word": "x", "low": 1, "high": 2, "wrod": 1}},
            "inner.wrod is not a key of this stage: did you mean",
        ),
        ({"weight": {"grams": "many"}}, "weight.grams must be a number, got 'many'"),
        ({"weight": {"grams": -1}}, "grams must be at least 0, got -1"),
        ({"weight": {}}, "weight.grams is missing: add weight.grams=... to the command"),
        ({"weight": {"grams": 1, "x": 1}}, "weight.x is not an argument of Weight, which takes grams"),
        ({"weight": {"_target_": "nowhere.Weight"}}, "weight._target_ must name a class or function that can be"),
    ],
)
def test_a_fault_is_one_sentence_that_names_its_key(changes: dict[str, object], sentence: str) -> None:
    (found,) = faults(**changes)
    assert found.startswith(sentence)


@pytest.mark.parametrize("given", ["3", "{seed:1}"])
def test_what_only_a_target_builds_must_have_one(given: str) -> None:
    cfg = composed("stage=pretrain", "task=shapes_cls", "data.draw=null", f"++data.draw={given}")
    with pytest.raises(ConfigError, match=r"data\.draw must be a mapping with a _target_, got"):
        read_config(cfg, TrainConfig)


def test_all_faults_are_reported_together_on_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        outer(number=0, switch="yes", weight={"grams": -1})
    assert str(caught.value) == (
        "3 faults in the configuration: number must be at least 1, got 0; switch must be true or false, got 'yes'; "
        "grams must be at least 0, got -1"
    )


def test_the_faults_of_a_search_are_reported_together_also_those_of_torchs_classes() -> None:
    cfg = composed(
        "stage=proxy", "search.trials=0", "proxy.rungs=[3,1]", "task.recipe.lr=-1", "search.precision=8",
        "+task.build.detector.fpn_chanels=3", "num_threads=0", "search.constraints={macs: {mx: 3}}", "resume=perhaps",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_config(cfg, ProxyConfig)
    keys = (
        "search.trials", "proxy.rungs", "recipe.lr", "search.precision", "fpn_chanels", "num_threads", "resume",
        "search.constraints.macs.mx",
    )  # fmt: skip
    for name in keys:
        assert any(name in fault for fault in caught.value.faults), name
    assert len(caught.value.faults) == len(keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["stage=search"], "weights must name a supernet to search, got null"),
        (["stage=search", "weights=x", "search.repeats=1"], "search.repeats must be 0 or at least 2 seeds, got 1"),
        (["stage=search", "weights=x", "search.trade_off={second: params}"], "use objective=[score,params]"),
        (["stage=search", "weights=x", "search.trade_off={ratio: -1, second: macs}"], "search.trade_off.ratio"),
        (["stage=search", "weights=x", "trainer.devices=4"], "search.trials_per_job=N"),
        (["stage=proxy", "weights=x", "proxy.budget.images=-1"], "proxy.budget.images"),
        (
            ["stage=proxy", "weights=x", "proxy.validate=3", "proxy.rungs=[0]"],
            "proxy.validate compares with longer training",
        ),
        (["stage=profile", "latency=3"], "latency must be 0 or at least 4 archs, got 3"),
        (["stage=predict", "images=x", "weights=y", "score_threshold=2"], "score_threshold must be at most 1, got 2"),
        (["stage=report", "runs_in=[]"], "runs_in must name folders"),
        (["trainer.max_epochs=null"], "trainer.max_steps or trainer.max_epochs must be above 0"),
        (["trainer.devices=many", "num_workers=-1"], "num_workers must be at least 0, got -1"),
        (["+trainer.max_step=3"], "trainer.max_step is not an argument of Trainer: did you mean max_steps?"),
        (["+search.trials=3"], "search is not a key of this stage"),
        (["stage.config=nas_transfer.errors.ConfigError"], "stage.config must name a subclass"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides: list[str], sentence: str) -> None:
    cfg = composed(*overrides)
    with pytest.raises(ConfigError) as caught:
        read_config(cfg, record_of(cfg))
    assert sentence in str(caught.value)


def test_a_number_is_taken_where_a_word_is_wanted() -> None:
    assert read_config(composed("name=7"), TrainConfig).name == "7"
    assert (
        read_config(composed("stage=proxy", "weights=x", "search.precision=16"), ProxyConfig).search.precision == "16"
    )


def test_lightnings_own_options_pass_through() -> None:
    trainer = read_config(composed("+trainer.gradient_clip_val=0.5"), TrainConfig).trainer
    assert trainer.lightning["gradient_clip_val"] == 0.5
    assert replace(trainer, devices=(0, 1)).arguments()["devices"] == [0, 1]


def test_a_stage_without_a_data_set_does_not_read_its_keys() -> None:
    assert read_config(composed("stage=profile", "task=coco_det"), ProfileConfig).data is None
    with pytest.raises(ConfigError, match=r"data\.root is missing"):
        read_config(composed("stage=profile", "task=coco_det", "preview=4"), ProfileConfig)


@pytest.mark.parametrize(
    ("stage", "override", "counts"),
    [
        ("profile", "seed=1", False),
        ("profile", "data.batch_size=3", False),
        ("profile", "trainer.precision=bf16", False),
        ("profile", "arch=min", True),
        ("search", "search.trials=7", False),
        ("search", "pick=best", False),
        ("search", "arch=min", False),
        ("search", "trainer.max_epochs=7", False),
        ("search", "search.ask_batch=7", True),
        ("search", "search.sampler.screen=3", True),
        ("search", "seed=7", True),
        ("proxy", "proxy.validate=5", False),
        ("proxy", "proxy.budget.images=5", False),
        ("proxy", "proxy.keep=0.3", True),
        ("proxy", "trainer.limit_train_batches=7", True),
        ("report", "seed=7", False),
        ("report", "runs_in=[elsewhere]", True),
        ("export", "stage.max_difference=0.1", True),
        ("export", "trainer.precision=bf16", False),
        ("evaluate", "ema_decay=0.9", False),
        ("evaluate", "data.num_workers=3", False),
        ("evaluate", "data.split.search_fraction=0.3", True),
        ("finetune", "ema_decay=0.9", True),
        ("finetune", "trainer.log_every_n_steps=3", False),
        ("finetune", "checkpoint_every_n_steps=3", False),
        ("finetune", "sample_predictions=0", False),
        ("finetune", "+trainer.gradient_clip_val=1", True),
    ],
)
def test_what_counts_as_another_run_is_said_by_the_records(stage: str, override: str, counts: bool) -> None:
    common = [f"stage={stage}", "weights=somewhere"]
    assert (config_sha256(composed(*common)) != config_sha256(composed(*common, override))) == counts


def test_the_seed_counts_in_a_profile_that_draws_from_it() -> None:
    for drawing in ("preview=4", "latency=4"):
        with_seed = composed("stage=profile", drawing, "seed=1")
        assert config_sha256(with_seed) != config_sha256(composed("stage=profile", drawing))


def test_the_identity_is_flat_and_names_keys_as_the_command_line_does() -> None:
    found = identity(composed("stage=proxy", "weights=x", "proxy.rungs=[0,3]"))
    assert found["task.recipe.lr"] == 0.001
    assert found["search.objectives.macs._target_"] == "nas_transfer.search.objectives.macs.Macs"
    assert found["proxy.rungs"] == [0, 3]
    assert found["trainer.precision"] == "32-true"
    assert not {"name", "run_dir", "runs", "resume", "search.trials", "stage.config"} & found.keys()


def test_a_record_of_another_stage_ignores_the_keys_of_every_command() -> None:
    config = read_config(composed("task=coco_det"), TaskRunConfig)
    assert (config.task.name, config.arch) == ("coco_det", "max")
    report = read_config(composed("stage=report", "runs_in=runs/search"), ReportConfig)
    assert report.patterns == ["runs/search"]
    assert read_config(composed("stage=report"), ReportConfig).patterns == ["runs"]
    assert Path(report.run_dir).parts[:2] == ("runs", "report")
