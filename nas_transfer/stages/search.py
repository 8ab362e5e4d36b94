"""Search the archs of a trained supernet for the best trade-offs between its task's score and their costs.

`search` runs in the process that a user starts and writes the study; `run` is a job: it evaluates the archs of a batch,
wherever the launcher puts it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.report.manifest import RESULT_FILE, SECONDS_PER_HOUR, write_json_atomically
from nas_transfer.search.evaluate import PRECISIONS, CandidateEvaluator
from nas_transfer.search.front import Front, front_of, pick, share_of_hypervolume, write_front
from nas_transfer.search.loop import JOBS, Launch, SearchLoop, read_job, trial_file, write_outcome
from nas_transfer.search.objectives.base import ArchCost
from nas_transfer.search.problem import Costs, Limit, Problem
from nas_transfer.search.study import Study, Trial, signs, study_lock
from nas_transfer.stages.build import build_data, build_table, build_task, build_weights, set_threads
from nas_transfer.stages.results import cost_report, make_result
from nas_transfer.stages.run_directory import config_sha256, log_to, open_run
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.base import Task
from nas_transfer.tasks.checkpoint import Checkpoint, load_network

logger = logging.getLogger(__name__)

STARTED = ".started"
SPENT = ".spent.json"
QUEUE_SECONDS = 5.0

_evaluators: dict[str, CandidateEvaluator] = {}
"""The one evaluator of this process, by its configuration's hash: later jobs find supernet and images loaded."""


@dataclass(frozen=True)
class Spent:
    """What was spent before the first candidate: wall seconds, the kind of device, images trained on."""

    seconds: float = 0.0
    device: str = "cpu"
    images: int = 0


def run(cfg: DictConfig, folder: Path) -> None:
    """Evaluate the archs of one job with the supernet's own weights."""
    evaluate_job(cfg, folder, build_evaluator)


def evaluate_job(cfg: DictConfig, folder: Path, build: Callable[[DictConfig], CandidateEvaluator]) -> None:
    """Evaluate the archs of one job; each outcome is a file of its own.

    Args:
        build: makes the evaluator, which later jobs of this process find ready.

    Raises:
        NasTransferError: the configuration, the data or the weights cannot be used.
    """
    if cfg.search.job is None:
        raise ConfigError("expected a search to run as a sweep, got hydra.mode=RUN: leave hydra.mode out")
    path = Path(cfg.search.job)
    log_to(folder)
    if (slurm_job := _slurm_job()) is not None:
        write_json_atomically(path.with_suffix(STARTED), {"slurm_job": slurm_job})
    evaluator = _evaluator(cfg, build)
    for number, arch in read_job(path, evaluator.supernet.table.space):
        file = trial_file(path.parent.parent, number)
        if file.is_file():
            continue
        outcome = evaluator.evaluate(arch)
        write_outcome(file, outcome, write_json_atomically)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in outcome.values.items())
        logger.info("trial %d: %s (%.2f s)", number, shown or outcome.reason, outcome.seconds)


def _slurm_job() -> str | None:
    """The id of the SLURM job that this process runs in, as SLURM's commands take it."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def wait_for_jobs(folder: Path) -> None:
    """Wait until no SLURM job of an earlier start of this search runs: what it evaluates need not be done twice."""
    for path in sorted((folder / JOBS).glob(f"*{STARTED}")):
        job = json.loads(path.read_text())["slurm_job"]
        told = False
        while _runs(job):
            if not told:
                logger.info("waiting for SLURM job %s, which an earlier start of this search left running", job)
                told = True
            time.sleep(QUEUE_SECONDS)
        path.unlink()


def _runs(job: str) -> bool:
    """Whether a SLURM job is queued or running; False where SLURM does not answer or does not know it any more."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def _evaluator(cfg: DictConfig, build: Callable[[DictConfig], CandidateEvaluator]) -> CandidateEvaluator:
    key = config_sha256(cfg)
    if key not in _evaluators:
        _evaluators.clear()  # two supernets at once may not fit into memory
        _evaluators[key] = build(cfg)
    return _evaluators[key]


def build_evaluator(cfg: DictConfig, *, cache: bool = True) -> CandidateEvaluator:
    """The evaluator that a search's jobs use; without cache it reads the images anew for every candidate."""
    set_threads(cfg)
    table, checkpoint = supernet_weights(cfg)
    data = build_data(cfg, None, table.preprocessing)
    supernet = build_task(cfg, table, None, data)
    load_network(supernet, checkpoint)
    return evaluator_of(cfg, supernet, data, cache=cache)


def supernet_weights(cfg: DictConfig) -> tuple[SupernetTable, Checkpoint]:
    """The table and the weights of the supernet that is searched; ConfigError if there are none, or one arch's."""
    table, checkpoint = build_weights(cfg)
    if checkpoint is None:
        raise ConfigError("expected weights=<a supernet's run, or a file> to search, got none")
    if checkpoint.arch is not None:
        raise ConfigError(f"expected the weights of a supernet to search, got those of one arch in {checkpoint.path}")
    return table, checkpoint


def evaluator_of(
    cfg: DictConfig, supernet: Task, data: Any, *, cache: bool = True, train: Callable[[Task], int] | None = None
) -> CandidateEvaluator:
    """The evaluator of a supernet's archs as the configuration says."""
    if cfg.search.precision not in PRECISIONS:
        raise ConfigError(f"expected search.precision to be one of {', '.join(PRECISIONS)}, got {cfg.search.precision}")
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    evaluator = CandidateEvaluator(
        supernet.to("cuda" if on_gpu else "cpu"),
        data.calibration_dataloader(cfg.calibration_images, max(2, data.batch_size)),
        data.search_dataloader(),
        data.search_ground_truth,
        {str(name): instantiate(objective) for name, objective in cfg.search.objectives.items()},
        _limits(cfg),
        cfg.search.cache_mb * 2**20 if cache else 0,
        cfg.search.precision,
        train,
    )
    if cfg.search.precision != "32":
        _tell_of_the_precision(evaluator)
    return evaluator


def _tell_of_the_precision(evaluator: CandidateEvaluator) -> None:
    """Log what the reduced precision changes in the largest and the smallest arch's score."""
    space, key = evaluator.supernet.table.space, evaluator.supernet.score_key
    chosen = evaluator.precision
    for arch in (space.largest(), space.smallest()):
        scores = []
        for evaluator.precision in ("32", chosen):
            scores.append(evaluator.score(evaluator.extract(arch))[key])
        logger.info("%s of arch %s: %.5f at 32, %.5f at %s", key, arch.short_id(), scores[0], scores[1], chosen)


def _limits(cfg: DictConfig) -> dict[str, Limit]:
    limits = {}
    for name, bounds in (cfg.search.constraints or {}).items():
        if name not in cfg.search.objectives:
            raise ConfigError(
                f"expected search.constraints of the objectives {', '.join(cfg.search.objectives)}, got {name}: "
                f"add it, objective=[{','.join(map(str, cfg.search.objectives))},{name}]"
            )
        if unknown := set(bounds) - {"min", "max"}:
            raise ConfigError(f"expected min and max in search.constraints.{name}, got {sorted(unknown)}")
        low, high = (None if bounds.get(key) is None else float(bounds[key]) for key in ("min", "max"))
        limits[str(name)] = Limit(low, high)
    return limits


def search(cfg: DictConfig, hydra_cfg: DictConfig, launch: Launch) -> float | None:
    """Run or go on with a search, write its front and print it; the picked arch's score.

    Raises:
        NasTransferError: everything that a user can mend; an infeasible constraint before anything is evaluated.
    """
    if cfg.weights is None:
        raise ConfigError("expected weights=<a supernet's finished run> to search, got none")
    if cfg.trainer.devices not in (1, "1"):
        raise ConfigError(
            f"expected trainer.devices=1 for a search, got {cfg.trainer.devices}: a candidate is evaluated on one; "
            "hydra/launcher=slurm search.trials_per_job=N evaluates several at once"
        )
    started = time.monotonic()
    folder = open_run(cfg, hydra_cfg).folder
    log_to(folder)
    with study_lock(folder):
        return _Search(cfg, folder, launch, started).run()


class _Search:
    """The objects of one search and what is said about it on the way."""

    def __init__(self, cfg: DictConfig, folder: Path, launch: Launch, started: float) -> None:
        set_threads(cfg)
        self.cfg, self.folder, self.started = cfg, folder, started
        table = build_table(cfg)
        data = build_data(cfg, None, table.preprocessing)
        with torch.device("meta"):  # for costs alone
            self.task = build_task(cfg, table, None, data)
        self.objectives = {str(name): instantiate(objective) for name, objective in cfg.search.objectives.items()}
        self.problem = make_problem(cfg, self.task, self.objectives)
        rng = np.random.default_rng(cfg.seed)
        self.problem.draw(rng)  # an infeasible constraint ends the search here
        sampler = instantiate(cfg.search.sampler)(problem=self.problem, seed=cfg.seed)
        directions = {name: objective.direction for name, objective in self.objectives.items()}
        self.study = Study(folder, cfg.search.storage, table.space, directions, sampler)
        self.loop = SearchLoop(
            self.study,
            folder,
            trials=cfg.search.trials,
            ask_batch=cfg.search.ask_batch,
            trials_per_job=cfg.search.trials_per_job,
            max_failures=cfg.search.max_failures,
            launch=launch,
            write=write_json_atomically,
            after_batch=self.tell_progress,
        )
        self.done_before = len(self.study)

    def run(self) -> float | None:
        """Search, then pick."""
        logger.info(
            "search of %s: %d of %d trials, %s archs, objectives %s",
            self.task.table.name, self.done_before, self.cfg.search.trials, f"{self.problem.size:.2g}",
            ", ".join(f"{name} ({objective.direction})" for name, objective in self.objectives.items()),
        )  # fmt: skip
        wait_for_jobs(self.folder)
        if self.cfg.stage.prepares is not None:
            self.loop.prepare(self.folder / self.cfg.stage.prepares)
        self.loop.run()
        front = self.front()
        picked = pick(front, self.cfg.pick, self.cfg.pick_under or {})
        write_front(self.folder, front, picked, self.costs_of, write_json_atomically)
        self.write_result(front, picked)
        self.show(front, picked)
        return picked.values[0]

    def front(self) -> Front:
        """The current front."""
        return front_of(self.study.told(), self.study.directions)

    def costs_of(self, trial: Trial) -> dict[str, Any]:
        """A trial's costs with their input size."""
        return cost_report(self.task, trial.arch)

    def hypervolume(self, front: Front) -> float | None:
        """The share of the box between the ideal and the reference point that the front dominates.

        The box ends at score 0 and 1 and at cost 0 and that of the largest arch; an objective that has to be measured
        ends at the worst value told so far, so that its share may fall.
        """
        if not front.trials:
            return None
        ends = [self.reference(name, place) for place, name in enumerate(front.names)]
        factors = signs(front.directions)
        # A maximised objective runs from 0 up to its end, which is then the ideal.
        ideal = np.asarray([factor * end if factor < 0 else 0.0 for factor, end in zip(factors, ends, strict=True)])
        reference = np.asarray([0.0 if factor < 0 else end for factor, end in zip(factors, ends, strict=True)])
        if not (reference > ideal).all():
            return None
        return share_of_hypervolume(front.points, ideal, reference)

    def reference(self, name: str, place: int) -> float:
        """The largest value of an objective, the score's being 1."""
        objective = self.objectives[name]
        if isinstance(objective, ArchCost):
            return float(objective.of_archs(self.task, [self.task.table.space.largest()])[0])
        if not objective.measured_first:
            return 1.0
        return max(trial.values[place] for trial in self.study.told())

    def tell_progress(self) -> None:
        """Log where the search is, and write the front so far."""
        front = self.front()
        write_front(self.folder, front, None, self.costs_of, write_json_atomically)
        done, total = len(self.study), self.cfg.search.trials
        rate = (time.monotonic() - self.started) / max(1, done - self.done_before)
        best = front.trials[0] if front.trials else None
        volume = self.hypervolume(front)
        logger.info(
            "%d of %d trials, %d failed, %d left out; front %d, hypervolume %s; best %s; %.2f s a trial, %s left",
            done, total, len(self.study.failures()), self.study.num_left_out(), len(front.trials),
            "none" if volume is None else f"{volume:.4f}",
            "none" if best is None else f"{front.names[0]} {best.values[0]:.4f} (trial {best.number})",
            rate, _duration(rate * (total - done)),
        )  # fmt: skip

    def write_result(self, front: Front, picked: Trial) -> None:
        """``result.json``: the picked arch with its score on the search split."""
        volume = self.hypervolume(front)
        # The evaluations' time, those before an interruption included, wherever they ran.
        before = self.preparation()
        seconds, images = self.study.seconds() + before.seconds, self.study.images() + before.images
        gpu_seconds = self.study.seconds(accelerator=True) + (before.seconds if before.device != "cpu" else 0.0)
        result = make_result(self.cfg, self.task, dict(picked.metrics), seconds=seconds, images_seen=images)
        result = replace(
            result, arch=picked.arch.to_dict(), costs=self.costs_of(picked),
            gpu_hours=gpu_seconds / SECONDS_PER_HOUR,
            search={
                "trials": len(self.study), "failed": len(self.study.failures()),
                "left_out": self.study.num_left_out(), "front": len(front.trials), "hypervolume": volume,
                "picked": picked.number, "objectives": self.study.directions,
            },
        )  # fmt: skip
        write_json_atomically(self.folder / RESULT_FILE, result.to_dict())

    def preparation(self) -> Spent:
        """What the first job spent on what all others read."""
        name = self.cfg.stage.prepares
        return Spent() if name is None else Spent(**json.loads((self.folder / name).with_suffix(SPENT).read_text()))

    def show(self, front: Front, picked: Trial) -> None:
        """Print the front, the picked trial marked."""
        print(f"search {self.cfg.task.name}: {self.folder}")
        print("  trial  " + "".join(f"{name:>16}" for name in front.names) + "   arch")
        for trial in front.trials:
            mark = "*" if trial.number == picked.number else " "
            values = "".join(
                f"{_shown(name, value):>16}" for name, value in zip(front.names, trial.values, strict=True)
            )
            print(f"{mark} {trial.number:5d}  {values}   {trial.arch.short_id()}")
        size = "x".join(map(str, self.task.input_size(picked.arch)))
        share = self.hypervolume(front)
        volume = "undefined" if share is None else f"{share:.4f}"
        print(
            f"  {len(self.study)} trials, {len(self.study.failures())} failed; hypervolume {volume}; "
            f"picked (*) by {self.cfg.pick}: {self.folder}/archs/picked.yaml (costs at {size})"
        )


def make_problem(cfg: DictConfig, task: Task, objectives: Mapping[str, Any]) -> Problem:
    """The archs that a search of this task may ask for.

    Genes that only classification sees stay at their largest choice where the input size is the task's own.
    """
    space = task.table.space
    frozen = {}
    if not task.input_follows_arch:
        frozen = {name: space.largest()[name] for name in task.table.classifier_genes}
    frozen |= {str(name): value for name, value in (cfg.search.frozen or {}).items()}
    space.sample(np.random.default_rng(0), frozen)  # ArchError for a gene that there is not
    known = {name: limit for name, limit in _limits(cfg).items() if isinstance(objectives[name], ArchCost)}

    def costs(archs: Any) -> Costs:
        return {name: objectives[name].of_archs(task, archs) for name in known}

    return Problem(space, frozen, known, costs)


def _shown(name: str, value: float) -> str:
    if name in ("macs", "params"):
        return f"{value / 1e6:.3f} M"
    return f"{100 * value:.2f} %" if name == "score" else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
