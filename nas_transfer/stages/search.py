"""Search the archs of a trained supernet for the best trade-offs between its task's score and their costs.

`search` runs in the process that the user starts and writes the study. `run` is one of its jobs, which evaluates archs
in the process that the launcher starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.errors import BusyError, RunError
from nas_transfer.runs import (
    SECONDS_PER_HOUR,
    Ancestor,
    Costs,
    Front,
    Job,
    SearchSummary,
    Trial,
    Usage,
    Validation,
    files,
    read_front,
    read_result,
    usage_in,
)
from nas_transfer.runs.lock import run_lock
from nas_transfer.runs.plan import Timing, read_plan, read_timing
from nas_transfer.runs.texts import counted, duration, value_text
from nas_transfer.search.attainable import CostRange, attainable
from nas_transfer.search.damage import fit_additive
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.search.front import TradeOff, front_of, pick, points_of, share_of_hypervolume, write_front
from nas_transfer.search.loop import Launch, SearchLoop
from nas_transfer.search.objectives.base import ArchCost
from nas_transfer.search.pareto import signs
from nas_transfer.search.planning import trial_seconds
from nas_transfer.search.problem import Costs as ArchCosts
from nas_transfer.search.problem import Problem
from nas_transfer.search.resizing import gains_of, trials_of
from nas_transfer.search.shared_study import SharedStudy
from nas_transfer.search.statistics import rank_quality
from nas_transfer.stages.common.build import build_data, build_task, hold_run_inputs, set_threads
from nas_transfer.stages.common.candidates import (
    Config,
    build_evaluator,
    evaluate_job,
    evaluator_in_process,
    job_of,
    searched_weights,
)
from nas_transfer.stages.common.damage import (
    cuts_parts,
    damage_usage,
    give_damage,
    prepare_damage,
    ranks_public_parts,
    uses_damage,
)
from nas_transfer.stages.common.front_table import front_table, heads_on
from nas_transfer.stages.common.launching import WorkerLauncher
from nas_transfer.stages.common.planning import close_plan, plan_of_run, planned, schedule_of, shares_of
from nas_transfer.stages.common.problem import make_sampler, searched_problem
from nas_transfer.stages.common.racing import make_race
from nas_transfer.stages.common.repair import check_scored_images, remove_networks, write_networks
from nas_transfer.stages.common.results import cost_report, make_result
from nas_transfer.stages.common.slurm_jobs import wait_for_jobs
from nas_transfer.stages.common.timing import time_search
from nas_transfer.stages.common.trust import Rescored, rescore, validate_proxy
from nas_transfer.stages.common.workers import open_study, run_worker, run_workers
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SCORE, ProxyConfig, SearchConfig
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

LEAST_TOLD = 3
"""Number of trials from which a warning is logged if all of them have the same score."""


def run(cfg: DictConfig, folder: Path) -> None:
    """Evaluate the archs of one job with the weights of the supernet."""
    run_job(read_config(cfg, SearchConfig), folder, build_evaluator, time_search)


def run_job(
    config: Config, folder: Path, build: Callable[[Config], TrialEvaluator], measure: Callable[[Config], Timing]
) -> None:
    """Evaluate the archs of one job, or those that a worker asks for, or time some before the search.

    The last worker writes the front if the process that started the workers is gone.

    Args:
        build: makes the evaluator, which later jobs of this process use again.
        measure: times archs.

    Raises:
        NasTransferError: the configuration, the data or the weights cannot be used.
    """
    job = job_of(config, folder)
    if files.is_timing_job(job):
        measure(config).write(folder)
        return
    evaluator = evaluator_in_process(config, build)
    if not files.is_worker_job(job):
        evaluate_job(job, evaluator)
        return
    run_worker(config, evaluator)

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for one in jobs:
            evaluate_job(one.path, evaluator)
        return [None] * len(jobs)

    plan = read_plan(config.folder)  # of the process that began the search; this one may have been given other numbers
    trials = plan.trials if plan is not None and plan.budget is None else config.search.trials
    with suppress(BusyError), run_lock(folder):
        search(replace(config, search=replace(config.search, job=None, trials=trials)), launch)


def search(config: SearchConfig, launch: Launch, workers: WorkerLauncher | None = None) -> float | None:
    """Run or continue a search, write its front and print it; returns the score of the picked arch.

    Args:
        config: the configuration.
        launch: runs jobs.
        workers: starts the workers of a search with `search.workers`; None to start none, because all of its trials are
            finished.

    Raises:
        NasTransferError: everything that a user can correct; an infeasible constraint before anything is evaluated.
    """
    started = time.monotonic()
    return _Search(config, launch, started).run(workers)


class _Search:
    """The objects of one search, and what it logs and prints."""

    def __init__(self, config: SearchConfig, launch: Launch, started: float) -> None:
        set_threads(config.num_threads)
        keys, folder = config.search, config.folder
        self.config, self.folder, self.started = config, folder, started
        table = config.supernet.build()
        data = build_data(config.data, SUPERNET, table.preprocessing)
        hold_run_inputs(config, data)
        with torch.device("meta"):  # for costs alone
            self.task = build_task(config, table, SUPERNET, data)
        self.objectives = {name: objective.build() for name, objective in keys.objectives.items()}
        make_race(config, self.task, self.objectives, data)  # raises where trials cannot race
        self.trade_off = None if keys.trade_off is None else keys.trade_off.build()
        checkpoint = searched_weights(config)[1]
        self.repairs = cuts_parts(config, checkpoint)
        self.writes_networks = checkpoint.arch is not None and not isinstance(config, ProxyConfig)
        if not ranks_public_parts(config, checkpoint):
            check_scored_images(config, repairs=self.repairs)
        self.problem = searched_problem(config, self.task, self.objectives, repairs=self.repairs)
        if keys.trials is None and not uses_damage(config, checkpoint):
            make_sampler(config, self.problem, None)  # an infeasible constraint ends the search before archs are timed
        if keys.trials is not None:  # else archs are timed first
            give_damage(self.objectives, prepare_damage(config, self.task.space, checkpoint, launch))
        self.plan = plan_of_run(config, launch, self.problem, self.task, repairs=self.repairs)
        self.config = config = planned(config, self.plan)
        images_per_step = (keys.folds or 1) * data.batch_size * config.task.recipe.build().accumulate
        schedule = schedule_of(config, self.plan, images_per_step, self.objectives, repairs=self.repairs)
        damage = prepare_damage(config, self.task.space, checkpoint, launch)
        give_damage(self.objectives, damage)
        self.sampler = make_sampler(config, self.problem, damage)
        self.study = open_study(config, self.task.space, self.objectives, self.sampler)
        self.loop = SearchLoop(self.study, folder, schedule, launch, self.log_progress, self.problem.baselines)
        self.done_before = len(self.study.told()) + len(self.study.failures()) + self.study.num_left_out()
        self.ranges: Mapping[str, CostRange] = {}

    def run(self, workers: WorkerLauncher | None) -> float | None:
        """Search, pick a trial, and measure how reliable the front is."""
        logger.info(
            "search of %s: %d of %d trials, %s archs, objectives %s",
            self.task.table.name, self.done_before, self.config.search.trials, f"{self.problem.size:.2g}",
            ", ".join(f"{name} ({objective.direction})" for name, objective in self.objectives.items()),
        )  # fmt: skip
        if self.task.pads_batches:
            logger.info(
                "trials are scored in batches that share their padding; stage=evaluate scores a detector as deployed, "
                "which may differ by tenths of a point"
            )
        ranges = self.ranges = attainable(self.problem, partial(_all_costs, self.task, self.problem))
        logger.info("costs within reach: %s", ", ".join(f"{name} {reach}" for name, reach in ranges.items()))
        if not isinstance(self.study, SharedStudy):
            wait_for_jobs(self.folder)
        if self.config.stage.prepares is not None:
            self.loop.prepare(self.folder / self.config.stage.prepares)
            self.log_estimate()
        self.started = time.monotonic()
        if isinstance(self.study, SharedStudy):
            run_workers(self.config, self.study, self.loop, workers, self.log_progress)
        else:
            self.loop.run()
        close_plan(self.config, self.plan, len(self.study))
        front = self.front()
        failures = self.study.failures()
        if failures and not front.trials:
            number, reason = failures[0]
            share = f"{len(failures)} of {len(self.study)} trials failed"
            raise RunError(f"no trial can be picked: {share}, trial {number} with {reason}")
        picked = pick(front, self.config.pick, self.config.pick_under or {}, self.trade_off)
        if self.writes_networks:
            front = write_networks(self.loop, front, self.task.weightless_genes)
            picked = next(trial for trial in front.trials if trial.number == picked.number)
        rescored = rescore(self.config, self.loop, front)
        front = write_front(self.folder, replace(front, picked=picked.number), self.costs_of, rescored)
        validation = None
        if isinstance(self.config, ProxyConfig):
            validation = validate_proxy(self.config, self.loop, front)
        self.write_result(front, picked, validation)
        self.show(front, rescored, validation)
        return picked.values[front.names[0]]

    def log_estimate(self) -> None:
        """Log how long the search will take, estimated from two archs that were timed before it."""
        spent, schedule = self.loop.prepared, self.loop.schedule
        if not spent.scoring_seconds or self.plan.budget is not None:  # a plan with a budget has been announced
            return
        each = trial_seconds(spent, schedule.rungs, shares_of(self.problem, self.task, repairs=self.repairs))
        a_trial, a_baseline = each.average, each.baseline
        budget, baselines = schedule.budget, self.loop.baselines_left()
        trials = min(schedule.trials, budget.trials_left(spent.images, spent.seconds, a_trial, baselines))
        baselines = min(baselines, int(trials))
        seconds = baselines * a_baseline + (trials - baselines) * a_trial
        images = baselines * budget.images_per_baseline + (trials - baselines) * budget.images_per_trial
        logger.info(
            "estimate from two timed archs (min, max): %s s per step, %s s to score; %d trials, "
            "%s one after another, %d training images%s",
            ", ".join(f"{value:.3g}" for value in spent.step_seconds) or "0",
            ", ".join(f"{value:.3g}" for value in spent.scoring_seconds), trials, duration(seconds),
            spent.images + images, f", for all {folds} folds together" if (folds := self.config.search.folds) else "",
        )  # fmt: skip

    def front(self) -> Front:
        """The current front, with the predictor that chose the latest trials."""
        predictor = self.sampler.predictor
        if predictor is None and (self.folder / files.FRONT).is_file():
            predictor = read_front(self.folder).predictor  # from before an interruption
        told = self.study.told()
        resized, narrowed = (trials_of(told, archs) for archs in (self.problem.resized, self.problem.narrowed))
        front = front_of(told, self.study.directions)
        return replace(front, predictor=predictor, resized=resized, narrowed=narrowed)

    def costs_of(self, trial: Trial) -> Costs:
        """The costs of a trial's arch."""
        return cost_report(self.task, self.task.space.from_dict(trial.arch))

    def hypervolume(self, front: Front) -> float | None:
        """The share of the box between the ideal and the reference point that the front dominates.

        The box spans scores from 0 to 1 and costs from 0 to that of the largest arch. A measured objective ends at the
        worst value so far, so the share may fall.
        """
        if not front.trials:
            return None
        ends = list(self.ends(front).values())
        factors = signs(front.directions)
        # A maximised objective runs from 0 up to its end, which is then the ideal.
        ideal = np.asarray([factor * end if factor < 0 else 0.0 for factor, end in zip(factors, ends, strict=True)])
        reference = np.asarray([0.0 if factor < 0 else end for factor, end in zip(factors, ends, strict=True)])
        if not (reference > ideal).all():
            return None
        return share_of_hypervolume(points_of(front), ideal, reference)

    def ends(self, front: Front) -> dict[str, float]:
        """The largest value of each objective, where the box ends."""
        return {name: self.reference(name) for name in front.names}

    def reference(self, name: str) -> float:
        """The largest value of an objective; 1 for the score."""
        objective = self.objectives[name]
        if isinstance(objective, ArchCost):
            return float(objective.of_archs(self.task, self.task.space.ends()).max())
        if not objective.measured_first:
            return 1.0
        return max(trial.values[name] for trial in self.study.told())

    def log_progress(self) -> None:
        """Log the progress, and write the front so far."""
        front = self.front()
        write_front(self.folder, front, self.costs_of)
        if self.loop.schedule.keeps_networks:
            remove_networks(self.folder, self.study)
        told, first = self.study.told(), front.names[0]
        if len(told) >= LEAST_TOLD and len({trial.values[first] for trial in told}) == 1:
            logger.warning(
                "all %d trials have the %s %s and cannot be ranked: train for longer (%s)",
                len(told), first, value_text(first, told[0].values[first]),
                "proxy.warmup_steps, proxy.rungs" if isinstance(self.config, ProxyConfig) else "the supernet",
            )  # fmt: skip
        done, total = len(self.study), self.loop.schedule.trials
        if self.trade_off is not None:
            self.trade_off.penalties(front)  # a score on another scale ends the search
        rate = (time.monotonic() - self.started) / max(1, done - self.done_before)
        best = front.trials[0] if front.trials else None
        volume = self.hypervolume(front)
        logger.info(
            "%d of %d trials, %d failed, %d left out%s; front %d, hypervolume %s; best %s; %.2f s per trial, %s left",
            done, total, len(self.study.failures()), self.study.num_left_out(),
            "" if self.config.search.race is None else f" ({self.study.raced()})", len(front.trials),
            "none" if volume is None else f"{100 * volume:.2f} %",
            "none" if best is None else f"{first} {value_text(first, best.values[first])} (trial {best.number})",
            rate, duration(rate * (total - done)),
        )  # fmt: skip

    def spent(self) -> dict[str, Usage]:
        """The resources that all evaluations used, including those before an interruption.

        Repeats and validations of archs that have left the front count too.
        """
        study, timing = self.study, read_timing(self.folder)
        timed = Usage() if timing is None else timing.usage
        return {
            "preparation": self.loop.prepared.usage + damage_usage(self.config) + timed,
            "trials": Usage(study.images(), study.seconds(), study.seconds(accelerator=True), study.training_macs()),
            "validation": usage_in(self.folder / files.VALIDATION_FOLDER),
            "repeats": usage_in(self.folder / files.REPEATS_FOLDER),
        }

    def additive(self) -> str | None:
        """How well damages rank the scores of the trials, None without damages or without different scores."""
        damage, told = self.problem.damage, self.study.told()
        if damage is None or self.study.directions.get(SCORE) != "maximize" or len(told) < LEAST_TOLD:
            return None
        damages = damage([self.task.space.from_dict(trial.arch) for trial in told])
        scores = np.asarray([trial.values[SCORE] for trial in told])
        line = fit_additive(damages, scores)
        quality = rank_quality(scores, -damages, self.config.seed)
        return f"score = {100 * line.whole:.2f} % - {100 * line.factor:.2f} points x damage; damage ranks: {quality}"

    def lineage(self) -> tuple[Ancestor, ...]:
        """The files that the searched supernet descends from; those of an earlier pick, whose files may be gone."""
        earlier = read_result(self.folder)
        return searched_weights(self.config)[1].lineage() if earlier is None else earlier.provenance

    def write_result(self, front: Front, picked: Trial, validation: Validation | None) -> None:
        """``result.json``: the picked arch with its score on the search split."""
        spent = self.spent()
        seconds, images = sum(use.seconds for use in spent.values()), sum(use.images for use in spent.values())
        gpu_seconds = sum(use.gpu_seconds for use in spent.values())
        result = make_result(
            self.config,
            self.task,
            dict(picked.metrics),
            seconds=seconds,
            images_seen=images,
            training_macs=sum(use.training_macs for use in spent.values()),
            provenance=self.loop.prepared.provenance or self.lineage(),
        )
        summary = SearchSummary(
            trials=len(self.study),
            failed=len(self.study.failures()),
            left_out=self.study.num_left_out(),
            front=len(front.trials),
            hypervolume=self.hypervolume(front),
            ends=self.ends(front),
            picked=picked.number,
            objectives=self.study.directions,
            spent=spent,
            validation=validation,
            attainable={name: (reach.low, reach.high) for name, reach in self.ranges.items()},
        )
        result = replace(
            result, arch=picked.arch, costs=self.costs_of(picked), gpu_hours=gpu_seconds / SECONDS_PER_HOUR,
            passes_per_image=1, search=summary,
        )  # fmt: skip
        result.write(self.folder)

    def show(self, front: Front, rescored: Rescored | None, validation: Validation | None) -> None:
        """Print the front, with a mark at the picked trial."""
        print(f"search {self.config.task.name}: {self.folder}")
        print(*front_table(front, self.task, rescored), sep="\n")
        share = self.hypervolume(front)
        volume = "undefined" if share is None else f"{100 * share:.2f} %"
        rule = _rule(self.config.pick, self.trade_off)
        print(
            f"  {counted(len(self.study), 'trial')}, {len(self.study.failures())} failed; hypervolume {volume}; "
            f"picked (*) by {rule}: {self.folder / files.PICKED_ARCH}"
        )
        raced = None if self.config.search.race is None else self.study.raced()
        for line in (raced, heads_on(front, self.task), self.additive(), rescored, validation, *gains_of(front)):
            if line is not None:
                print(f"  {line}")


def _rule(pick: str | None, trade_off: TradeOff | None) -> str:
    return pick or ("knee" if trade_off is None else "trade_off")


def _all_costs(task: Task, problem: Problem, archs: Sequence[Arch]) -> ArchCosts:
    """MACs and parameters of the whole network, and all objectives that follow from the arch."""
    totals = task.cost_totals(archs)
    counts = {"macs": totals.macs.astype(np.float64), "params": totals.params.astype(np.float64)}
    return counts | problem.costs(archs)
