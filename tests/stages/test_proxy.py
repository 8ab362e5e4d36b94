"""Route C: candidates with a training of their own, from one warm start, independent of each other."""

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import nas_transfer.cli  # noqa: F401  registers the resolvers and the sweeper
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation, Job
from nas_transfer.runs.plan import Timing, read_plan
from nas_transfer.stages import proxy
from nas_transfer.stages.common.candidates import searched_weights
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.stages.finetune import run as train
from nas_transfer.sweeper import run_search
from nas_transfer.tasks.checkpoint import random_weights
from tests.conftest import nightly_but, sample_data
from tests.stages.test_search import trials, without_times
from tests.test_cli import Fork, forked

BASE = ["num_threads=1", "seed=1", "calibration_images=8", "trainer.enable_progress_bar=false", "data.draw.num_val=6"]
TASKS = {
    "shapes_cls": ["data.draw.num_train=60", "data.draw.image_size=48", "data.image_size=48", "data.batch_size=10",
                   "data.split.search_fraction=0.3", "search.frozen={resolution: 48}"],
    "shapes_det": ["data.draw.num_train=24", "data.draw.image_size=64", "task.build.detector.min_size=64",
                   "task.build.detector.max_size=80", "data.batch_size=4"],
    "shapes_insseg": ["data.draw.num_train=24", "data.draw.image_size=64", "task.build.detector.min_size=64",
                      "task.build.detector.max_size=80", "data.batch_size=4"],
    "shapes_pose": ["data.draw.num_train=24", "data.draw.image_size=96", "data.batch_size=4"],
    "shapes_seg": ["data.draw.num_train=24", "data.batch_size=4"],
}  # fmt: skip


HALVING = ["proxy.rungs=[0,2,5]", "search.ask_batch=6", "search.sampler.num_random=6", "search.trials=12"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a supernet after two steps on another task than those that inherit from it."""
    folder = tmp_path_factory.mktemp("parent")
    own = [value for value in TASKS["shapes_cls"] if not value.startswith("search.")]
    overrides = ["stage=pretrain", "task=shapes_cls", "arch=supernet", "trainer.max_steps=2", *own, *BASE]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        train(compose("config", [*overrides, f"data.root={folder}/data"]), folder)
    return folder


def arguments(folder: Path, parent: Path, task: str, *overrides: str) -> list[str]:
    return [
        "stage=proxy", f"task={task}", f"data.root={folder}/data", f"weights={parent}", "proxy.rungs=[2]",
        "proxy.warmup_steps=2", *TASKS[task], *BASE, *overrides,
    ]  # fmt: skip


def composed(folder: Path, parent: Path, task: str, *overrides: str) -> DictConfig:
    own = arguments(folder, parent, task, f"run_dir={folder}/run", "name=mine", *overrides)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", own, return_hydra_config=True)


def searched(cfg: DictConfig) -> dict:
    """Run the stage and its jobs in this process; the result file."""
    folder = Path(cfg.run_dir)

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for job in jobs:
            own = copy.deepcopy(cfg)
            own.search.job = str(job.path)
            proxy.run(own, folder)
        return [None] * len(jobs)

    run_search(cfg, launch)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_a_score_does_not_depend_on_which_candidates_came_before(tmp_path: Path, parent: Path) -> None:
    cfg = composed(tmp_path, parent, "shapes_cls", "proxy.rungs=[4]")
    (tmp_path / "run").mkdir()
    evaluator = proxy.build_proxy_evaluator(read_config(cfg, ProxyConfig))
    before = {name: tensor.clone() for name, tensor in evaluator.supernet.network.state_dict().items()}
    rng = np.random.default_rng(0)
    archs = [evaluator.supernet.table.space.sample(rng, {"resolution": 48}) for _ in range(4)]

    def evaluation(number: int) -> Evaluation:
        return Evaluation(number, archs[number].to_dict(), steps=4)

    def weights(order: Sequence[int]) -> dict[int, dict[str, torch.Tensor]]:
        return {number: evaluator.extract(evaluation(number)).network.state_dict() for number in order}

    forwards, backwards = weights([0, 1, 2, 3]), weights([2, 0, 3, 1])
    for place in range(4):
        for name, tensor in forwards[place].items():
            assert torch.equal(tensor, backwards[place][name]), name
    scores = {place: evaluator.evaluate(evaluation(place)) for place in (3, 1, 0, 2)}
    for place, found in scores.items():
        again = evaluator.evaluate(evaluation(place))
        assert (again.values, again.metrics) == (found.values, found.metrics)
    after = evaluator.supernet.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # nobody trained the shared weights
    untrained = proxy.build_proxy_evaluator(
        read_config(composed(tmp_path, parent, "shapes_cls", "proxy.rungs=[0]"), ProxyConfig)
    )
    assert not torch.equal(
        untrained.extract(Evaluation(0, archs[0].to_dict())).network.state_dict()["head.classifier.weight"],
        forwards[0]["head.classifier.weight"],
    )


@pytest.mark.slow
def test_minutes_are_planned_once_and_equal_the_number_of_trials_that_the_log_names(
    tmp_path: Path, parent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    planned = composed(tmp_path, parent, "shapes_cls", "search.minutes=150")
    timing = Timing((0.0, 0.0), (1000.0, 2000.0), warmup_seconds=600.0, damage_seconds=0.0, seconds=0.0)
    timing.write(tmp_path / "run")
    result = searched(planned)
    budget = read_plan(tmp_path / "run").budget
    assert result["search"]["trials"] == (150 * 60 - 600) // budget.trial_seconds == 7
    assert 1050 < budget.trial_seconds < 1150  # archs of 48 pixels; the largest timed one has 96
    same = next(text for text in caplog.messages if text.startswith("the same search on any machine: "))
    assert "about 7 trials of 18 min" in caplog.text
    first = without_times(trials(tmp_path / "run"))
    (tmp_path / "run" / "timing.json").unlink()
    assert searched(planned)["search"]["trials"] == 7  # not timed again
    assert not (tmp_path / "run" / "timing.json").exists()
    named = composed(tmp_path, parent, "shapes_cls", f"run_dir={tmp_path}/named", *same.split(": ")[1].split())
    searched(named)
    assert without_times(trials(tmp_path / "named")) == first
    plans = [read_plan(tmp_path / run) for run in ("run", "named")]
    assert replace(plans[0], budget=None) == plans[1]


@pytest.mark.slow
def test_steps_scores_and_the_warm_up_are_timed(tmp_path: Path, parent: Path) -> None:
    (tmp_path / "run").mkdir()
    timing = proxy.time_proxy(read_config(composed(tmp_path, parent, "shapes_det"), ProxyConfig))
    assert len(timing.step_seconds) == len(timing.scoring_seconds) == 2
    assert min(*timing.step_seconds, *timing.scoring_seconds, timing.warmup_seconds) > 0
    assert timing.seconds >= sum(timing.scoring_seconds)
    assert timing.images == 2 * 2 * 4
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", nightly_but(TASKS, "shapes_cls", "shapes_det"))
def test_every_task_is_searched_by_changing_the_task_alone(tmp_path: Path, parent: Path, task: str) -> None:
    cfg = composed(tmp_path, parent, task, "search.trials=4", "search.ask_batch=2", "search.sampler.num_random=2")
    result = searched(cfg)
    assert result["search"]["trials"] == 4
    assert result["search"]["failed"] == 0
    # Two steps of a batch for each candidate and the two that are timed, and two of the warm-up where a head is new.
    warmup = 0 if task == "shapes_cls" else 2 * cfg.data.batch_size
    assert result["images_seen"] == (4 + 2) * 2 * cfg.data.batch_size + warmup
    outcomes = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*.json")]
    assert [outcome["images"] for outcome in outcomes] == [2 * cfg.data.batch_size] * 4


@pytest.mark.slow
def test_one_search_compares_several_detectors_that_inherit_one_body(
    tmp_path: Path, parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ["detector=several_shapes", "task.build.detector.heads=[ssdlite,fcos]", "search.trials=6"]
    result = searched(composed(tmp_path, parent, "shapes_det", *several, "search.ask_batch=6"))
    assert (result["search"]["trials"], result["search"]["failed"]) == (6, 0)
    outcomes = [json.loads(path.read_text()) for path in sorted((tmp_path / "run" / "trials").glob("*.json"))]
    assert {outcome["arch"]["head"] for outcome in outcomes} == {1, 2}
    warm = torch.load(tmp_path / "run" / "warm_start.pt", weights_only=True)
    inherited = torch.load(parent / "weights.pt", weights_only=True)
    assert all(torch.equal(tensor, inherited["body"][name]) for name, tensor in warm["body"].items())
    assert {name.split(".")[1] for name in warm["rest"]} == {"ssdlite", "fcos"}
    front = json.loads((tmp_path / "run" / "front.json").read_text())
    names = [["ssdlite", "fcos"][trial["arch"]["head"] - 1] for trial in front["trials"]]
    table = capsys.readouterr().out
    assert all(f"  {name}\n" in table for name in names)
    assert "heads on the front: " in table


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("data", "task", "overrides"),
    [
        ("balloon", "small_det", ["task.build.detector.min_size=96", "search.score_key=map_50"]),
        ("lspet", "small_pose", ["data.input_size=[64,64]", "search.score_key=ap_50"]),
        ("camvid", "small_seg", ["data.crop_size=[64,64]", "data.ignore_ids=[11]", "search.score_key=pixel_accuracy",
                                 "data.class_names=[a,b,c,d,e,f,g,h,i,j,k]"]),
    ],
)  # fmt: skip
def test_real_files_are_searched_from_imagenet_weights(
    tmp_path: Path, data: str, task: str, overrides: list[str]
) -> None:
    command = [
        "stage=proxy", f"task={task}", f"data.root={sample_data(data)}", f"run_dir={tmp_path}/run", "name=mine",
        "proxy.rungs=[1]", "proxy.warmup_steps=1", "search.trials=2", "calibration_images=4", "data.batch_size=2",
        "data.split.search_fraction=0.02", "num_threads=1", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", command, return_hydra_config=True)
    assert searched(cfg)["search"]["failed"] == 0
    for path in (tmp_path / "run" / "trials").glob("*.json"):
        outcome = json.loads(path.read_text())
        assert outcome["values"]["score"] == outcome["metrics"][cfg.search.score_key]


@pytest.mark.slow
def test_a_search_that_goes_on_trains_nothing_twice_and_keeps_its_warm_start(tmp_path: Path, parent: Path) -> None:
    overrides = ["search.ask_batch=2", "search.sampler.num_random=2"]
    searched(composed(tmp_path, parent, "shapes_det", *overrides, "search.trials=2"))
    files = [*(tmp_path / "run" / "trials").glob("*.json"), tmp_path / "run" / "warm_start.pt"]
    before = {path: path.stat().st_mtime_ns for path in files}
    longer = searched(composed(tmp_path, parent, "shapes_det", *overrides, "search.trials=4"))
    assert longer["search"]["trials"] == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_the_warm_start_holds_the_inherited_body_and_a_trained_head(tmp_path: Path, parent: Path) -> None:
    (tmp_path / "run").mkdir()
    proxy.build_proxy_evaluator(read_config(composed(tmp_path, parent, "shapes_det"), ProxyConfig))
    warm = torch.load(tmp_path / "run" / "warm_start.pt", weights_only=True)
    inherited = torch.load(parent / "weights.pt", weights_only=True)["body"]
    assert all(torch.equal(tensor, inherited[name]) for name, tensor in warm["body"].items())
    assert [own["file"] for own in warm["provenance"]] == [str(parent / "weights.pt")]
    (tmp_path / "run" / "warm_start.pt").unlink()
    proxy.build_proxy_evaluator(
        read_config(composed(tmp_path, parent, "shapes_det", "proxy.warmup_steps=0"), ProxyConfig)
    )
    cold = torch.load(tmp_path / "run" / "warm_start.pt", weights_only=True)
    changed = [name for name, tensor in warm["rest"].items() if not torch.equal(tensor, cold["rest"][name])]
    assert len(changed) > 10


@pytest.mark.slow
def test_survivors_go_on_from_their_own_state_as_if_they_had_never_stopped(tmp_path: Path, parent: Path) -> None:
    cfg = composed(tmp_path, parent, "shapes_cls", "proxy.rungs=[0,3,7]")
    (tmp_path / "run").mkdir()
    evaluator = proxy.build_proxy_evaluator(read_config(cfg, ProxyConfig))
    arch = evaluator.supernet.table.space.sample(np.random.default_rng(3), {"resolution": 48})
    straight = evaluator.extract(Evaluation(5, arch.to_dict(), steps=7)).network.state_dict()
    before = evaluator.trained.images
    evaluator.extract(Evaluation(5, arch.to_dict(), steps=3, keep=True))
    assert evaluator.trained.images - before == 3 * cfg.data.batch_size
    stopped = evaluator.extract(Evaluation(5, arch.to_dict(), steps=7, after=3)).network.state_dict()
    assert evaluator.trained.images - before == 7 * cfg.data.batch_size  # four more steps, not seven
    for name, tensor in straight.items():
        assert torch.equal(tensor, stopped[name]), name


@pytest.mark.slow
def test_halving_trains_the_best_of_a_batch_for_longer_and_counts_every_step(tmp_path: Path, parent: Path) -> None:
    overrides = ["proxy.rungs=[0,2,5]", "search.ask_batch=8", "search.sampler.num_random=8", "search.trials=8"]
    cfg = composed(tmp_path, parent, "shapes_cls", *overrides)
    result = searched(cfg)
    folder, batch = tmp_path / "run", cfg.data.batch_size
    at = {
        steps: {int(path.name.split(".")[0]) for path in (folder / "rungs").glob(f"*.{steps}.json")}
        for steps in (0, 2, 5)
    }
    # Half of the remaining trials, rounded up, and the largest arch, trial 1, which is the baseline.
    assert len(at[0]) == 8
    assert len(at[2]) in (4, 5)
    assert len(at[5]) - math.ceil(len(at[2]) / 2) in (0, 1)
    assert 1 in at[5]
    assert at[5] < at[2] < at[0]
    outcomes = {int(path.stem): json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")}
    assert {number for number, outcome in outcomes.items() if outcome["values"]} == at[5]
    for number, outcome in outcomes.items():
        steps = 5 if number in at[5] else 2 if number in at[2] else 0
        assert outcome["images"] == steps * batch
        assert number in at[5] or (outcome["left_out"] and f"after {steps} training steps" in outcome["reason"])
    assert result["search"]["left_out"] == 8 - len(at[5])
    steps = 2 * 5 + len(at[5]) * 5 + len(at[2] - at[5]) * 2  # two are timed before the search
    assert result["images_seen"] == steps * batch
    assert not (folder / "states").exists()
    # The best score of the first rung is never dropped there.
    first = {number: json.loads((folder / "rungs" / f"{number}.0.json").read_text())["values"] for number in at[0]}
    assert max(first, key=lambda number: (first[number]["score"], -first[number]["macs"])) in at[2]


@pytest.mark.slow
def test_a_budget_of_images_ends_the_search(tmp_path: Path, parent: Path) -> None:
    overrides = ["search.ask_batch=3", "search.sampler.num_random=3", "search.trials=50"]
    result = searched(composed(tmp_path, parent, "shapes_cls", *overrides, "proxy.budget.images=200"))
    assert result["search"]["trials"] == (200 - 2 * 2 * 10) // (2 * 10)
    assert result["images_seen"] == 200
    longer = searched(composed(tmp_path, parent, "shapes_cls", *overrides, "proxy.budget.images=240"))
    assert longer["search"]["trials"] == result["search"]["trials"] + 2
    with pytest.raises(ConfigError, match=r"proxy\.budget\.images must be above 0"):
        searched(composed(tmp_path, parent, "shapes_cls", *overrides, "proxy.budget.images=-1"))
    with pytest.raises(ConfigError, match=r"proxy\.rungs=\[0\] trains nothing: limit search\.trials"):
        searched(composed(tmp_path / "none", parent, "shapes_cls", "proxy.rungs=[0]", "proxy.budget.images=9"))


@pytest.mark.slow
def test_the_front_is_scored_again_and_held_against_longer_trainings(tmp_path: Path, parent: Path) -> None:
    overrides = ["search.ask_batch=4", "search.sampler.num_random=4", "search.trials=4"]
    result = searched(composed(tmp_path, parent, "shapes_cls", *overrides))
    assert result["search"]["validation"] is None
    more = ["search.repeats=2", "proxy.validate=3", "proxy.validate_times=2"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "trials").iterdir()}
    result = searched(composed(tmp_path, parent, "shapes_cls", *overrides, *more))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # an afterthought: nothing is searched again
    front = json.loads((tmp_path / "run" / "front.json").read_text())["trials"]
    for member in front:
        files = [tmp_path / "run" / "repeats" / f"{member['number']}.{repeat}.json" for repeat in (1, 2)]
        scores = [json.loads(file.read_text())["values"]["score"] for file in files]
        assert member["repeats"]["scores"] == scores
        assert member["repeats"]["mean"] == pytest.approx(np.mean(scores))
    trust = json.loads((tmp_path / "run" / "trust.json").read_text())
    assert (trust["steps"], trust["long_steps"], len(trust["trials"])) == (2, 4, 3)
    assert trust["images"] == 3 * 4 * 10
    assert -1 <= trust["quality"]["low"] <= trust["quality"]["tau"] <= trust["quality"]["high"] <= 1
    assert result["search"]["validation"] == {key: value for key, value in trust.items() if key != "format"}
    spent = result["search"]["spent"]
    assert {name: use["images"] for name, use in spent.items()} == {
        "preparation": 2 * 2 * 10, "trials": 4 * 2 * 10, "validation": 3 * 4 * 10, "repeats": 2 * len(front) * 2 * 10,
    }  # fmt: skip
    for name in ("trials", "validation", "repeats"):
        outcomes = [json.loads(path.read_text()) for path in (tmp_path / "run" / name).iterdir()]
        assert spent[name]["seconds"] == pytest.approx(sum(outcome["seconds"] for outcome in outcomes))
    assert result["images_seen"] == sum(use["images"] for use in spent.values())
    assert result["seconds"] == pytest.approx(sum(use["seconds"] for use in spent.values()))
    assert result["gpu_hours"] == pytest.approx(sum(use["gpu_seconds"] for use in spent.values()) / 3600)


@pytest.mark.slow
def test_repeats_see_other_batches_and_the_same_repeat_the_same(tmp_path: Path, parent: Path) -> None:
    (tmp_path / "run").mkdir()
    evaluator = proxy.build_proxy_evaluator(read_config(composed(tmp_path, parent, "shapes_cls"), ProxyConfig))
    arch = evaluator.supernet.table.space.smallest()
    nets = [
        evaluator.extract(Evaluation(0, arch.to_dict(), steps=2, repeat=repeat)).network.state_dict()
        for repeat in (0, 1, 2, 1, 0)
    ]
    name = "head.classifier.weight"
    assert torch.equal(nets[0][name], nets[4][name])
    assert torch.equal(nets[1][name], nets[3][name])
    assert not any(torch.equal(nets[one][name], nets[other][name]) for one, other in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.nightly
def test_a_search_that_is_killed_trains_nothing_twice_and_ends_alike(tmp_path: Path, parent: Path) -> None:
    command = [*arguments(tmp_path, parent, "shapes_cls", *HALVING, "search.trials_per_job=2"), "name=mine"]
    forked(tmp_path, *command, "runs=whole")
    killed, whole = (tmp_path / runs / "proxy/shapes_cls/mine" for runs in ("killed", "whole"))

    def written() -> dict[Path, int]:
        paths = [*killed.glob("rungs/*.json"), *killed.glob("trials/*.json"), *killed.glob("warm_start.pt")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before: dict[Path, int] = {}
    for least in (0, 11, 24):  # in the preparation, at the second rung, between two batches
        process = Fork(tmp_path, *command, "runs=killed")
        while len(written()) < least or not (killed / "jobs").exists():
            assert process.poll() is None, "the search ended before it was killed"
            time.sleep(0.005)
        process.kill()
        before |= {path: when for path, when in written().items() if path not in before}
    forked(tmp_path, *command, "runs=killed")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert without_times(trials(killed)) == without_times(trials(whole))
    assert (killed / "front.json").read_text() == (whole / "front.json").read_text()


def test_impossible_steps_are_one_sentence(tmp_path: Path, parent: Path) -> None:
    with pytest.raises(ConfigError, match=r"proxy\.rungs must be numbers"):
        read_config(composed(tmp_path, parent, "shapes_cls", "proxy.rungs=[-1]"), ProxyConfig)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.repeats=1", r"search\.repeats must be 0 or at least 2"),
        ("proxy.validate=2", r"proxy\.validate must be 0 or at least 3"),
        ("search.trade_off={second: params}", r"objective=\[score,params\]"),
    ],
)
def test_what_could_not_be_done_after_the_search_is_refused_before_it(
    tmp_path: Path, parent: Path, override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        searched(composed(tmp_path, parent, "shapes_cls", override))
    assert not (tmp_path / "run" / "trials").exists()


def test_a_proxy_search_may_start_from_random_weights_and_a_search_may_not() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        search, brief = (compose("config", [f"stage={stage}", "weights=null"]) for stage in ("search", "proxy"))
    with pytest.raises(ConfigError, match="weights must name a supernet to search, got null"):
        read_config(search, SearchConfig)
    config = read_config(brief, ProxyConfig)
    assert config.starts_from_random_weights
    table = config.supernet.build()
    assert random_weights(table).lineage() == ()
    assert searched_weights(config)[1].format == "random"
