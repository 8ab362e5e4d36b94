"""The job that times archs before a search with a budget in minutes."""

from __future__ import annotations

import copy
import time

from nas_transfer.errors import RunError
from nas_transfer.runs import Evaluation, files
from nas_transfer.runs.plan import Timing
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.search.objectives.damage import Damage
from nas_transfer.search.planning import end_archs
from nas_transfer.stages.common.candidates import build_evaluator, evaluator_in_process
from nas_transfer.stages.common.damage import asks_for_damage, uses_damage
from nas_transfer.stages.common.repair import RepairedTrials
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.tasks.damage import DamageMeter


def time_search(config: SearchConfig) -> Timing:
    """Time the trials of a search without training.

    Later jobs of this process use the evaluator again, with what the first repairs have prepared. Where they have to
    measure damages first, it is made for the timing alone.
    """
    started = time.monotonic()
    if asks_for_damage(config):
        evaluator = build_evaluator(config, measures_damage=False)
    else:
        evaluator = evaluator_in_process(config, build_evaluator)
    return timing_of(config, evaluator, steps=0, started=started)


def timing_of(
    config: SearchConfig, evaluator: TrialEvaluator, *, steps: int, started: float, warmup_seconds: float = 0.0
) -> Timing:
    """Time the smallest and the largest arch, and the damage of a choice where a search measures it.

    Subnets of one whole network are timed when they are scored for the second time: the first time, the repair prepares
    what all subnets, and all of one input size, share.

    Args:
        evaluator: left as it is, but for what its first trials prepare.
        steps: training steps of each arch.
        started: the time at which the job began.
        warmup_seconds: estimated before.

    Raises:
        RunError: one of the archs cannot be trained or scored, so that its time says nothing.
    """
    evaluator, damage_seconds = copy.copy(evaluator), 0.0
    if isinstance(evaluator.repair, RepairedTrials):
        repairer = evaluator.repair.repairer()  # reads its views: no part of a trial
        if uses_damage(config, evaluator.repair.checkpoint) and not (config.folder / files.DAMAGE).is_file():
            meter = DamageMeter(repairer)
            choices = meter.choices()
            begun = time.monotonic()
            meter.damages(choices[len(choices) // 2])
            damage_seconds = len(choices) * (time.monotonic() - begun)
    evaluator.limits = {}
    evaluator.objectives = {
        name: objective for name, objective in evaluator.objectives.items() if not isinstance(objective, Damage)
    }
    timed = end_archs(evaluator.supernet.space, repairs=evaluator.repair is not None)
    first = [] if evaluator.repair is None else [evaluator.evaluate(Evaluation(-1, arch.to_dict())) for arch in timed]
    outcomes = [evaluator.evaluate(Evaluation(-1, arch.to_dict(), steps=steps)) for arch in timed]
    for size, outcome in zip(("smallest", "largest"), outcomes, strict=True):
        if outcome.reason is not None:
            raise RunError(
                f"the {size} arch must be timed to plan search.minutes, but it failed with {outcome.reason}: remove "
                "the cause, or set search.trials"
            )
    scoring_seconds = tuple(outcome.seconds - outcome.training_seconds for outcome in outcomes)
    return Timing(
        step_seconds=tuple(outcome.training_seconds / steps for outcome in outcomes) if steps else (),
        scoring_seconds=scoring_seconds,
        warmup_seconds=warmup_seconds,
        damage_seconds=damage_seconds,
        seconds=time.monotonic() - started,
        images=sum(outcome.images for outcome in outcomes),
        device=evaluator.supernet.device.type,
        training_macs=sum(outcome.training_macs for outcome in outcomes),
        preparation_seconds=max(0.0, sum(outcome.seconds for outcome in first) - sum(scoring_seconds)),
    )
