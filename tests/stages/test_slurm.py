"""Through SLURM: the same search as in one process, jobs that die or are cancelled, two ranks of one run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nas_transfer.runs.trials import write_started
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.stages.common import slurm_jobs
from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS
from tests.stages import test_proxy as proxy
from tests.stages.test_proxy import parent
from tests.stages.test_search import arguments, searched, supernet, trials, without_times

__all__ = ["parent", "supernet"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "+hydra.launcher.additional_parameters={mem: 2000}"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """Skip all where no cluster answers."""
    if shutil.which("sinfo") is None:
        pytest.skip("no SLURM")
    try:
        subprocess.run(["sinfo"], capture_output=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no SLURM cluster answers: {error}")


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "nas_transfer", *command],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output
    return output


class Deadly:
    """An objective whose process dies at the largest arch and sleeps at the smallest."""

    direction = "minimize"
    measured_first = True

    def __init__(self, direction: str) -> None:
        pass

    def measure(self, subnet: TrialSubnet) -> float:
        space = subnet.task.table.space
        if subnet.arch.values[1:] == space.largest().values[1:]:
            os._exit(1)
        if subnet.arch.values[1:] == space.smallest().values[1:]:
            time.sleep(300)
        return 1.0


@pytest.mark.nightly
def test_candidates_that_are_trained_by_halves_on_two_nodes_end_as_in_one_process(tmp_path: Path, parent: Path) -> None:
    halving = [*proxy.HALVING, "proxy.rungs=[0,2]", "search.trials=6"]
    command = proxy.arguments(tmp_path, parent, "shapes_cls", *halving)
    finish(start(tmp_path, *command, "search.trials_per_job=3", *SLURM, "runs=there", "name=mine"))
    proxy.searched(proxy.composed(tmp_path, parent, "shapes_cls", *halving))
    there, here = tmp_path / "there/proxy/shapes_cls/mine", tmp_path / "run"
    assert without_times(trials(there)) == without_times(trials(here))
    assert (there / "front.json").read_text() == (here / "front.json").read_text()


@pytest.mark.nightly
def test_a_job_that_dies_and_one_that_is_cancelled_fail_alone_and_the_third_scores_as_in_one_process(
    tmp_path: Path, supernet: Path
) -> None:
    deadly = "+search.objectives.deadly={_target_: tests.stages.test_slurm.Deadly, direction: minimize}"
    three = ["search.trials=3", "search.ask_batch=3"]
    command = [*arguments(supernet, *three, "search.trials_per_job=1"), *SLURM, deadly, "name=slurm"]
    process = start(tmp_path, *command)
    folder = tmp_path / "runs/search/shapes_cls/slurm"
    started = folder / "jobs/0.started"
    while not started.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    subprocess.run(["scancel", json.loads(started.read_text())["slurm_job"]], check=True)
    output = finish(process)
    outcomes = trials(folder)
    assert sorted(outcomes) == [2], output
    assert json.loads((folder / "result.json").read_text())["search"]["failed"] == 2
    searched(tmp_path / "here", supernet, *three)
    here = trials(tmp_path / "here")[2]
    assert outcomes[2]["arch"] == here["arch"]
    assert outcomes[2]["values"] == here["values"] | {"deadly": 1.0}


@pytest.mark.nightly
def test_a_worker_that_dies_leaves_its_trial_to_the_others_and_a_second_command_adds_workers(
    tmp_path: Path, supernet: Path
) -> None:
    mark, folder = tmp_path / "died", tmp_path / "runs/search/shapes_cls/slurm"
    deadly = "+search.objectives.deadly={_target_: tests.stages.test_workers.Deadly, direction: minimize, mark: MARK}"
    workers = ["search.workers=2", "search.grace_seconds=4", f"search.storage=sqlite:///{tmp_path}/study.db"]
    command = [
        *arguments(supernet, "search.trials=12", "search.sampler.num_random=6", "search.frozen=null", *workers),
        *SLURM, deadly.replace("MARK", str(mark)), "name=slurm",
    ]  # fmt: skip
    first = start(tmp_path, *command)
    while not (folder / "jobs").is_dir():
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    second = start(tmp_path, *command)
    assert "submitted to SLURM" in finish(first)
    assert "this one adds workers" in finish(second)
    assert mark.exists()
    outcomes = trials(folder)
    assert sorted(outcomes) == list(range(12))
    assert all(outcome["reason"] is None for outcome in outcomes.values())
    assert json.loads((folder / "result.json").read_text())["search"]["trials"] == 12


def test_a_job_that_will_never_start_ends_the_search_in_one_sentence(tmp_path: Path, supernet: Path) -> None:
    limit = subprocess.run(["sinfo", "--noheader", "--format", "%l"], capture_output=True, text=True, check=True)
    if "infinite" in limit.stdout:
        pytest.skip("no partition limits the time")
    command = arguments(supernet, "search.trials=3", *SLURM, "hydra.launcher.timeout_min=100000", "name=long")
    process = start(tmp_path, *command)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 2, output
    assert "will never start (PartitionTimeLimit): the partition allows less time" in output.splitlines()[-1]
    queued = subprocess.run(["squeue", "--noheader", "--name", "nas_transfer"], capture_output=True, text=True)
    assert "PartitionTimeLimit" not in queued.stdout


def test_a_new_start_waits_for_the_jobs_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_jobs, "QUEUE_SECONDS", 0.2)
    done = subprocess.run(
        ["sbatch", "--parsable", "--mem=100", "--output=/dev/null", "--wrap", "sleep 3"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs/0.started"
    write_started(tmp_path / "jobs/0.json", done.stdout.strip())
    slurm_jobs.wait_for_jobs(tmp_path)
    assert not path.exists()
    state = subprocess.run(["squeue", "-h", "-j", done.stdout.strip()], capture_output=True, text=True)
    assert not state.stdout.strip() or "CG" in state.stdout


def test_a_run_on_two_tasks(tmp_path: Path) -> None:
    process = start(
        tmp_path, "-m", "stage=finetune", "task=shapes_det", *SLURM, "trainer.devices=2", "trainer.accelerator=cpu",
        "trainer.max_steps=2", "trainer.enable_progress_bar=false", "data.draw.num_train=40", "data.draw.num_val=4",
        "data.draw.image_size=64", "task.build.detector.min_size=64", "task.build.detector.max_size=80",
        "data.batch_size=4", "name=two",
    )  # fmt: skip
    finish(process)
    result = json.loads((tmp_path / "runs/finetune/shapes_det/two/result.json").read_text())
    assert result["devices"] == 2
    assert result["images_seen"] == 16
