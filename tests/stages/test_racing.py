"""`search.race` in the evaluation of each task, and in a whole search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Evaluation, Outcome, files
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.stages import proxy
from nas_transfer.stages.common import candidates
from nas_transfer.stages.config.entry import identity, read_config
from nas_transfer.stages.config.search import ProxyConfig
from nas_transfer.tasks.box_tally import BoxTally
from nas_transfer.tasks.tally import HitTally, PixelTally, Tally
from tests.conftest import nightly_but
from tests.stages.test_proxy import composed, parent, searched, trials, without_times  # noqa: F401  a fixture
from tests.stages.test_search import SEARCH

IMAGES = 42
SIZES = ["data.draw.num_train=60", "data.split.search_fraction=0.7", "proxy.rungs=[0]", "proxy.warmup_steps=0"]
RACE = "search.race=0.05"


def evaluator_in(folder: Path, parent: Path, task: str, *overrides: str) -> TrialEvaluator:  # noqa: F811
    (folder / "run").mkdir(exist_ok=True)
    return proxy.build_proxy_evaluator(
        read_config(composed(folder, parent, task, *SIZES, "data.batch_size=4", *overrides), ProxyConfig)
    )


def perfect(tally: Tally) -> Tally:
    """What a network without errors would have done in the same images."""
    if isinstance(tally, HitTally):
        return replace(tally, hits=np.ones_like(tally.hits))
    if isinstance(tally, PixelTally):
        truth = tally.counts[:, 1:2]
        return replace(tally, counts=np.repeat(truth, 3, axis=1))
    assert isinstance(tally, BoxTally)
    images, categories = np.nonzero(tally.objects)
    times = tally.objects[images, categories]
    count = int(times.sum())
    return replace(
        tally, positions=np.repeat(images, times), categories=np.repeat(categories, times), confidences=np.ones(count),
        matched=np.ones((count, tally.matched.shape[1]), dtype=bool),
        ignored=np.zeros((count, tally.matched.shape[1]), dtype=bool),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", nightly_but(["shapes_cls", "shapes_seg", "shapes_det", "shapes_insseg"], "shapes_cls", "shapes_det")
)
def test_a_tally_gives_the_score_of_the_trial_and_a_perfect_rival_wins(
    tmp_path: Path,
    parent: Path,  # noqa: F811
    task: str,
) -> None:
    evaluator = evaluator_in(tmp_path, parent, task, RACE)
    race, space = evaluator.race, evaluator.supernet.space
    assert race is not None
    assert race.num_images == IMAGES
    assert race.looks == (32,)
    whole = evaluator.evaluate(Evaluation(0, space.smallest().to_dict(), rivals=()))
    assert whole.reason is None
    assert whole.scored == 1
    evaluator.evaluate(Evaluation(5, space.largest().to_dict()))  # no part of the race
    assert [path.name for path in (tmp_path / "run" / files.RACES_FOLDER).iterdir()] == ["0.npz"]
    evaluator.supernet.keep_tally(race.metric)
    tally = race.tally(0, evaluator.supernet.tally()) if task in ("shapes_cls", "shapes_seg") else None
    if tally is None:
        with np.load(tmp_path / "run" / files.tally_file(0)) as content:
            tally = BoxTally(**content)
    assert tally.score == pytest.approx(whole.values["score"], abs=1e-6)
    assert len(set(tally.images.tolist())) == IMAGES
    Outcome(0, {}, {"score": 1.0, "macs": 0.0}).write(tmp_path / "run" / files.trial_file(0))
    race._arrays.clear()
    race.keep(0, perfect(tally))
    lost = evaluator.evaluate(Evaluation(1, space.largest().to_dict(), rivals=(0,)))
    assert lost.left_out
    assert lost.reason is not None
    assert lost.reason.startswith("dropped after 32 of 42 images: score ")
    assert (lost.scored, lost.values) == (32 / IMAGES, {})
    again = evaluator.evaluate(Evaluation(2, space.smallest().to_dict(), rivals=()))
    assert again.values == whole.values  # nothing is left of the trial that was dropped


@pytest.mark.slow
def test_the_order_of_the_images_changes_no_score_of_a_classifier(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    (tmp_path / "plain").mkdir()
    plain = evaluator_in(tmp_path / "plain", parent, "shapes_cls")
    shuffled = evaluator_in(tmp_path, parent, "shapes_cls", RACE)
    assert plain.race is None
    orders = [
        [image for batch in evaluator.search for image in batch["sample_ids"].tolist()]  # type: ignore[attr-defined]
        for evaluator in (plain, shuffled)
    ]
    assert orders[0] == sorted(orders[0])
    assert orders[1] != orders[0]
    assert sorted(orders[1]) == orders[0]
    arch = plain.supernet.space.largest().to_dict()
    values = [evaluator.evaluate(Evaluation(0, arch)).values for evaluator in (plain, shuffled)]
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_task_that_cannot_race_says_so_before_anything_is_evaluated(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    with pytest.raises(
        ConfigError, match=r"^search\.race compares .* pose estimation .* metric ap: set search\.race=null$"
    ):
        evaluator_in(tmp_path, parent, "shapes_pose", RACE, f"data.root={tmp_path}/pose")
    with pytest.raises(ConfigError, match=r"does not offer for the metric map_small: set search\.race=null$"):
        evaluator_in(tmp_path, parent, "shapes_det", RACE, "search.score_key=map_small", f"data.root={tmp_path}/det")
    with pytest.raises(ConfigError, match=r"^search\.race compares scores that are maximised, got .* macs, params"):
        evaluator_in(tmp_path, parent, "shapes_cls", RACE, "objective=[macs,params]", f"data.root={tmp_path}/cls")


def test_races_exclude_folds_and_change_the_identity_of_a_run_only_where_they_are_set(
    tmp_path: Path,
    parent: Path,  # noqa: F811
) -> None:
    def config(*overrides: str) -> DictConfig:
        return composed(tmp_path, parent, "shapes_cls", *overrides)

    with pytest.raises(ConfigError, match=r"^search\.race has no effect with search\.folds"):
        read_config(config(RACE, "search.folds=3"), ProxyConfig)
    with pytest.raises(ConfigError, match=r"search\.race must be at most 0\.5, got 0\.6"):
        read_config(config("search.race=0.6"), ProxyConfig)
    assert "search.race" not in identity(config())
    assert identity(config(RACE))["search.race"] == 0.05


@pytest.mark.slow
def test_jobs_of_any_size_drop_the_same_trials(
    tmp_path: Path,
    parent: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for jobs in (50, 4):
        folder = tmp_path / str(jobs)
        folder.mkdir()
        options = [
            *SIZES,
            *SEARCH[1:],
            "search.race=0.5",
            "search.trials=16",
            "search.ask_batch=8",
            "data.batch_size=4",
        ]
        own = [f"search.trials_per_job={jobs}", f"data.root={tmp_path}/data"]
        candidates._evaluators.clear()  # those of the first search, which have the same configuration
        searched(composed(folder, parent, "shapes_cls", *options, *own))
        found.append(without_times(trials(folder / "run")))
    assert found[0] == found[1]
    dropped = [outcome for outcome in found[0].values() if outcome["scored"] < 1]
    assert dropped
    assert all(outcome["left_out"] and not outcome["values"] for outcome in dropped)
    assert f"{len(dropped)} trials lost their race, which saved" in capsys.readouterr().out
    kept = {int(path.stem) for path in (tmp_path / "4" / "run" / files.RACES_FOLDER).iterdir()}
    assert kept <= {number for number, outcome in found[0].items() if outcome["values"]}
