"""A search from its command to its front: killed and gone on with, with failing candidates, split into any jobs."""

import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytest
import torch
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers and the sweeper
from nas_transfer.arch import SUPERNET
from nas_transfer.arch_files import resolve_arch
from nas_transfer.data.image_cache import ImageCache
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.paths import conf_dir
from nas_transfer.report import find_runs, make_report, write_report
from nas_transfer.report.collect import read_run
from nas_transfer.report.studies import growth, read_study
from nas_transfer.runs import Evaluation, Job, Outcome, files, read_front
from nas_transfer.search.evaluate import TrialEvaluator, TrialImages
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.search.resizing import gains_of
from nas_transfer.stages import search as stage
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.stages.finetune import run as train
from nas_transfer.sweeper import run_search
from tests.conftest import load_supernet, nightly_but
from tests.stages.test_tasks import TINY
from tests.test_cli import Fork, forked, sentence

CLASSIFY = [
    "task=shapes_cls", "data.draw.num_train=60", "data.draw.num_val=12", "data.draw.image_size=48",
    "data.batch_size=10", "data.image_size=48", "data.split.search_fraction=0.3", "calibration_images=12",
    "num_threads=1", "seed=1",
]  # fmt: skip
SEARCH = ["stage=search", "search.frozen={resolution: 48}", "search.ask_batch=10", "search.sampler.num_random=10"]


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and the weights of a supernet after three steps."""
    folder = tmp_path_factory.mktemp("supernet")
    overrides = ["stage=pretrain", "arch=supernet", "trainer.max_steps=3", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*CLASSIFY, *overrides, f"data.root={folder}/data"])
    train(cfg, folder)
    return folder


def arguments(supernet: Path, *overrides: str) -> list[str]:
    return [*CLASSIFY, *SEARCH, f"data.root={supernet}/data", f"weights={supernet}", *overrides]


def searched(folder: Path, supernet: Path, *overrides: str) -> dict:
    """Run a search and its jobs in this process; the written front."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "config", arguments(supernet, f"run_dir={folder}", "name=mine", *overrides), return_hydra_config=True
        )

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for job in jobs:
            own = copy.deepcopy(cfg)
            own.search.job = str(job.path)
            stage.run(own, folder)
        return [None] * len(jobs)

    run_search(cfg, launch)
    return json.loads((folder / "front.json").read_text())


def trials(folder: Path) -> dict[int, dict]:
    return {int(path.stem): json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")}


def asked(folder: Path) -> dict[int, dict]:
    found = {}
    for path in (folder / "jobs").glob("*.json"):
        found |= {entry["trial"]: entry["arch"] for entry in json.loads(path.read_text())["evaluations"]}
    return found


def without_times(outcomes: dict[int, dict]) -> dict[int, dict]:
    return {number: {**outcome, "seconds": 0, "training_seconds": 0} for number, outcome in outcomes.items()}


@pytest.mark.slow
def test_a_front_is_written_with_arch_files_and_picked_again_without_searching(tmp_path: Path, supernet: Path) -> None:
    front = searched(tmp_path, supernet, "search.trials=24")
    members = front["trials"]
    scores, macs = ([member["values"][name] for member in members] for name in ("score", "macs"))
    assert scores == sorted(scores, reverse=True)
    assert macs == sorted(macs, reverse=True)
    outcomes = trials(tmp_path)
    assert len(outcomes) == 24
    for outcome in outcomes.values():  # nothing dominates a member
        assert not any(
            outcome["values"]["score"] >= score and outcome["values"]["macs"] < cost
            for score, cost in zip(scores, macs, strict=True)
        )
    space = load_supernet("bignas_nano").space
    for member in members:
        arch = resolve_arch(str(tmp_path / member["file"]), space, [])
        assert arch is not SUPERNET
        assert arch.to_dict() == member["arch"]
        assert member["costs"]["macs"]["total"] == member["values"]["macs"]
        assert member["costs"]["input_size"] == [48, 48]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["arch"] in [member["arch"] for member in members]
    assert 0 < result["search"]["hypervolume"] < 1
    low, high = result["search"]["attainable"]["macs"]
    assert 0 < low <= min(macs) <= max(macs) <= high
    assert result["seconds"] == pytest.approx(sum(outcome["seconds"] for outcome in outcomes.values()))
    assert result["gpu_hours"] == 0
    assert [Path(ancestor["file"]).parent for ancestor in result["provenance"]] == [supernet]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()}
    again = searched(tmp_path, supernet, "search.trials=24", "pick=best", f"pick_under={{macs: {macs[-1]}}}")
    assert again["picked"] == members[-1]["number"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()} == before
    assert resolve_arch(str(tmp_path / "archs/picked.yaml"), space, []).to_dict() == members[-1]["arch"]
    with pytest.raises(ConfigError, match="the nearest has"):
        searched(tmp_path, supernet, "search.trials=24", "pick_under={macs: 1}")


@pytest.mark.slow
def test_the_whole_network_at_each_resolution_is_the_baseline_of_the_front(
    tmp_path: Path, supernet: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "runs" / "search" / "shapes_cls" / "mine"
    folder.mkdir(parents=True)
    caplog.set_level("INFO", "nas_transfer")
    front = searched(folder, supernet, "search.trials=12", "search.frozen=null")
    space = load_supernet("bignas_nano").space
    largest = space.largest()
    asked_archs = asked(folder)
    assert [asked_archs[number]["resolution"] for number in range(4)] == [48, 96, 64, 48]
    assert asked_archs[0] == space.smallest().to_dict()
    for number, resolution in ((1, 96), (2, 64), (3, 48)):
        assert asked_archs[number] == {**largest.to_dict(), "resolution": resolution}
    assert [trial["number"] for trial in front["resized"]] == [1, 2, 3]
    outcomes = trials(folder)
    for trial in front["resized"]:
        assert trial["values"] == outcomes[trial["number"]]["values"]
        assert trial["arch"] == asked_archs[trial["number"]]
        assert trial["costs"]["input_size"] == [trial["arch"]["resolution"]] * 2
        assert bool(trial["file"]) == (trial["number"] in [member["number"] for member in front["trials"]])
    (gain,) = gains_of(read_front(folder))
    assert gain.num_sizes == 3
    assert f"  {gain}\n" in capsys.readouterr().out
    low, high = (outcomes[number]["values"]["macs"] for number in (0, 1))
    (line,) = [record.getMessage() for record in caplog.records if "costs within reach" in record.getMessage()]
    assert f"macs {low / 1e6:.3g} M to {high / 1e6:.3g} M (x{high / low:.3g})" in line
    assert "params" in line

    page, markdown, _ = write_report(tmp_path, *make_report(*find_runs([str(folder)], tmp_path / "page")))
    assert page.read_text().count("whole network, resized") == 1  # in the legend of the front
    assert page.read_text().count('<g class="mark s0 square">') == 3
    for text in (page.read_text(), markdown.read_text()):
        assert escape(str(gain), quote=False) in text


@pytest.mark.slow
def test_neither_jobs_nor_going_on_for_longer_change_what_is_asked_or_scored(tmp_path: Path, supernet: Path) -> None:
    folders = [tmp_path / name for name in ("one", "many", "stopped")]
    searched(folders[0], supernet, "search.trials=25", "search.trials_per_job=25")
    searched(folders[1], supernet, "search.trials=25", "search.trials_per_job=3")
    for count in (10, 20, 25):  # more trials each time
        searched(folders[2], supernet, f"search.trials={count}", "search.trials_per_job=2")
    for other in folders[1:]:
        assert without_times(trials(other)) == without_times(trials(folders[0]))
        assert asked(other) == asked(folders[0])


@pytest.mark.slow
def test_the_same_arch_always_has_the_same_score_and_the_evaluate_stage_has_it_too(
    tmp_path: Path, supernet: Path
) -> None:
    front = searched(tmp_path, supernet, "search.trials=3")
    member = front["trials"][0]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", arguments(supernet, "search.trials=3"))
    with patch.object(ImageCache, "clear") as clear:
        evaluator = build_evaluator(read_config(cfg, SearchConfig))
    clear.assert_called_once_with()  # the batches are in memory
    arch = evaluator.supernet.table.space.from_dict(member["arch"])
    before = {name: tensor.clone() for name, tensor in evaluator.supernet.state_dict().items()}
    for _ in range(2):
        assert evaluator.evaluate(Evaluation(0, arch.to_dict())).values["score"] == member["values"]["score"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in evaluator.supernet.state_dict().items())
    # Folded norms and cached batches against the plain way: extract, calibrate, count.
    subnet = evaluator.supernet.extract(arch)
    subnet.calibrate(evaluator.calibration)
    subnet.eval()
    right = total = 0
    with torch.no_grad():
        for batch in evaluator.search:
            right += int((subnet(batch["images"]).argmax(1) == batch["labels"]).sum())
            total += len(batch["labels"])
    assert member["values"]["score"] == pytest.approx(right / total)


class Faulty:
    """An objective that fails in the ways that candidates do."""

    direction = "minimize"
    measured_first = True

    def __init__(self, direction: str, every: bool = False) -> None:
        self.every = every
        self.calls = 0

    def measure(self, subnet: TrialSubnet) -> float:
        self.calls += 1
        if self.every or self.calls == 3:
            raise ValueError("this one\nis broken")
        if self.calls == 5:
            return math.nan
        if self.calls == 7:
            raise torch.OutOfMemoryError("no memory left")
        return float(self.calls)


FAULTY = "+search.objectives.faulty={_target_: tests.stages.test_search.Faulty, direction: minimize"


@pytest.mark.slow
def test_failing_candidates_are_recorded_with_the_reason_and_the_search_goes_on(tmp_path: Path, supernet: Path) -> None:
    front = searched(tmp_path, supernet, "search.trials=12", FAULTY + "}")
    reasons = {number: outcome["reason"] for number, outcome in trials(tmp_path).items() if outcome["reason"]}
    assert reasons == {
        2: "ValueError: this one is broken",
        4: "faulty must be a finite number, got nan",
        6: "OutOfMemoryError: no memory left",
    }
    assert not {member["number"] for member in front["trials"]} & set(reasons)
    assert json.loads((tmp_path / "result.json").read_text())["search"]["failed"] == 3
    with pytest.raises(RunError, match=r"max_failures=4.*trial 9: ValueError: this one is broken"):
        searched(tmp_path / "all", supernet, "search.trials=30", "search.max_failures=4", FAULTY + ", every: true}")
    with pytest.raises(RunError, match=r"the smallest arch must be timed to plan search\.minutes, but it failed with "):
        searched(tmp_path / "timed", supernet, "search.trials=null", "search.minutes=5", FAULTY + ", every: true}")
    assert not (tmp_path / "timed/plan.json").exists()


@pytest.mark.slow
def test_the_evaluator_that_timed_archs_evaluates_the_trials(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    init = TrialEvaluator.__init__
    monkeypatch.setattr(TrialEvaluator, "__init__", lambda self, *args: (built.append(self), init(self, *args))[1])
    monkeypatch.setattr("nas_transfer.stages.common.planning.trials_in", lambda *_: 12)
    limit = "search.constraints={score: {min: 0.12}}"  # which the timing ignores
    searched(tmp_path / "timed", supernet, "search.trials=null", "search.minutes=5", limit)
    assert len(built) == 1
    assert min(json.loads((tmp_path / "timed/timing.json").read_text())["scoring_seconds"]) > 0
    searched(tmp_path / "given", supernet, "search.trials=12", limit)
    assert len(built) == 2
    timed, given = (without_times(trials(tmp_path / name)) for name in ("timed", "given"))
    assert timed == given
    assert sum(outcome["left_out"] for outcome in timed.values()) >= 1


def test_a_job_without_results_fails_its_trials_with_its_reason(tmp_path: Path, supernet: Path) -> None:
    from nas_transfer.search.loop import Schedule, SearchLoop
    from nas_transfer.search.study import Study
    from tests.search.test_samplers import SPACE, Problem, build

    study = Study(tmp_path, None, SPACE, {"score": "maximize"}, build("random", Problem(SPACE)))

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for number in jobs[0].trials[:1]:  # the first job dies after its first candidate
            Outcome(number, {}, {"score": 0.5}).write(tmp_path / files.trial_file(number))
        for number in jobs[1].trials:
            content = {"format": 1, "trial": number, "arch": {}, "values": {"score": math.inf}}
            (tmp_path / files.trial_file(number)).write_text(json.dumps(content))
        return ["it was killed", None]

    schedule = Schedule(trials=5, ask_batch=5, trials_per_job=3, max_failures=9)
    loop = SearchLoop(study, tmp_path, schedule, launch, after_batch=lambda: None)
    loop.run()
    assert [trial.number for trial in study.told()] == [0]
    reasons = dict(study.failures())
    assert reasons[1] == reasons[2] == "it was killed"
    assert "inf" in reasons[3]


@pytest.mark.slow
def test_limits_that_have_to_be_measured_leave_candidates_out_before_they_are_scored(
    tmp_path: Path, supernet: Path
) -> None:
    searched(
        tmp_path, supernet, "search.trials=12", "objective=[score,macs,memory_mib]",
        "search.constraints={memory_mib: {max: 3}}",
    )  # fmt: skip
    outcomes = trials(tmp_path)
    out = [outcome for outcome in outcomes.values() if outcome["left_out"]]
    assert 0 < len(out) < 12
    assert all(
        "outside search.constraints.memory_mib" in outcome["reason"] and not outcome["metrics"] for outcome in out
    )
    assert all(outcome["values"]["memory_mib"] <= 3 for outcome in outcomes.values() if not outcome["left_out"])
    # The report's curve, from the files alone, ends where the search says.
    study = read_study(read_run(tmp_path))
    assert study is not None
    found = growth(study)
    assert found is not None
    result = json.loads((tmp_path / "result.json").read_text())
    assert found.shares[-1] == pytest.approx(result["search"]["hypervolume"], rel=1e-12)
    assert (len(found.shares), found.seconds[-1]) == (12, pytest.approx(result["seconds"]))


@pytest.mark.slow
def test_constraints_are_kept_or_refused_before_anything_is_evaluated(tmp_path: Path, supernet: Path) -> None:
    searched(tmp_path / "kept", supernet, "search.trials=8", "search.constraints={macs: {max: 3e6}}")
    assert all(outcome["values"]["macs"] <= 3e6 for outcome in trials(tmp_path / "kept").values())
    with pytest.raises(ConfigError, match=r"macs with max 1000 \(nearest found: \d"):
        searched(tmp_path / "none", supernet, "search.trials=8", "search.constraints={macs: {max: 1000}}")
    assert not (tmp_path / "none" / "trials").exists()
    with pytest.raises(ConfigError, match=r"objective=\[score,macs,params\]"):
        searched(tmp_path / "other", supernet, "search.constraints={params: {max: 1000}}")


@pytest.mark.nightly
def test_a_search_that_is_killed_three_times_ends_like_one_that_is_not(tmp_path: Path, supernet: Path) -> None:
    command = arguments(supernet, "search.trials=50", "search.trials_per_job=4", "name=mine")
    forked(tmp_path, *command, "runs=whole")
    killed, whole = (tmp_path / runs / "search/shapes_cls/mine" for runs in ("killed", "whole"))
    written: dict[int, float] = {}
    for least in (3, 15, 32):
        process = Fork(tmp_path, *command, "runs=killed")
        while len(list(killed.glob("trials/*.json"))) < least:
            assert process.poll() is None, "the search ended before it was killed"
            time.sleep(0.005)
        process.kill()
        for path in killed.glob("trials/*.json"):
            written.setdefault(int(path.stem), path.stat().st_mtime_ns)
    assert len(written) < 50
    done = forked(tmp_path, *command, "runs=killed")
    assert "50 trials, 0 failed" in done.stdout
    for number, time_of_writing in written.items():  # no candidate with a result ran again
        assert (killed / f"trials/{number}.json").stat().st_mtime_ns == time_of_writing
    assert without_times(trials(killed)) == without_times(trials(whole))
    assert (killed / "front.json").read_text() == (whole / "front.json").read_text()
    assert len(trials(killed)) == 50


@pytest.mark.slow
def test_what_a_user_gets_wrong_is_one_sentence(tmp_path: Path, supernet: Path) -> None:
    assert "weights=" in sentence(forked(tmp_path, "stage=search", "task=shapes_cls", code=2))
    assert "one value for weights" in forked(tmp_path, "-m", *arguments(supernet)[:-1], "weights=a,b", code=2).stderr
    several = sentence(forked(tmp_path, *arguments(supernet, "trainer.devices=2"), code=2))
    assert "search.trials_per_job" in several
    devices = forked(tmp_path, "-m", "task=shapes_cls", "trainer.devices=2", "trainer.accelerator=cpu", code=2)
    assert "hydra/launcher=slurm" in devices.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "score"),
    nightly_but(
        [("shapes_det", "map"), ("shapes_insseg", "map_segm"), ("shapes_pose", "ap"), ("shapes_seg", "miou")],
        ("shapes_det", "map"),
    ),
)
def test_every_task_is_searched_at_its_own_input_size(tmp_path: Path, task: str, score: str) -> None:
    data = ["data.draw.num_train=24", "data.draw.num_val=6", "data.batch_size=4", "calibration_images=8", "seed=1"]
    common = [
        f"task={task}",
        "num_threads=1",
        *data,
        *TINY.get(task, TINY["shapes_insseg"]),
        f"data.root={tmp_path}/data",
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        training = ["arch=supernet", "trainer.max_steps=1", "trainer.enable_progress_bar=false"]
        supernet = compose("config", ["stage=finetune", *common, *training])
        searching = ["stage=search", f"weights={tmp_path}/supernet", f"run_dir={tmp_path}/search", "search.trials=3"]
        cfg = compose("config", [*common, *searching], return_hydra_config=True)
    (tmp_path / "supernet").mkdir()
    train(supernet, tmp_path / "supernet")

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        cfg.search.job = str(jobs[0].path)
        stage.run(cfg, tmp_path / "search")
        return [None]

    run_search(cfg, launch)
    outcomes = trials(tmp_path / "search")
    assert [outcome["reason"] for outcome in outcomes.values()] == [None] * 3
    assert all(outcome["values"]["score"] == outcome["metrics"][score] for outcome in outcomes.values())
    # What only classification sees is not searched: it would make twins.
    archs = asked(tmp_path / "search")
    largest = load_supernet("bignas_nano").space.largest()
    assert {arch["resolution"] for arch in archs.values()} == {largest["resolution"]}
    assert {arch["width"][-1] for arch in archs.values()} == {largest["width.last_conv"]}


def test_images_for_statistics_are_not_read_for_a_network_without_batch_norm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calibration = MagicMock(return_value=[{"images": torch.zeros(1)}])
    for network, reads in ((torch.nn.LayerNorm(2), 0), (torch.nn.BatchNorm2d(2), 1)):
        with caplog.at_level(logging.INFO):
            evaluator = TrialEvaluator(MagicMock(network=network), TrialImages(calibration, []), {}, {}, 0, "32")
        assert calibration.call_count == len(list(evaluator.calibration)) == reads
    assert caplog.text.count("the network has no BatchNorm") == 1
