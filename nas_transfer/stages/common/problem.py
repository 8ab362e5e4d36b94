"""The problem of a search and the sampler that solves it, from the configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.search.damage import ArchDamage
from nas_transfer.search.objectives.base import ArchCost, Objective
from nas_transfer.search.objectives.damage import Damage
from nas_transfer.search.pareto import signs
from nas_transfer.search.problem import Costs as ArchCosts
from nas_transfer.search.problem import Known, Problem
from nas_transfer.search.samplers.base import ArchSampler
from nas_transfer.stages.common.limits import limits_of
from nas_transfer.stages.config.search import SCORE, SearchConfig, SearchKeys
from nas_transfer.tasks.damage import unseen_genes
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)


def searched_problem(
    config: SearchConfig, task: Task, objectives: Mapping[str, Objective], *, repairs: bool
) -> Problem:
    """The problem of a search.

    Args:
        task: the supernet's task; its tensors are not used.
        repairs: whether trials are parts of one whole network.

    Raises:
        ConfigError: damages have a limit that is needed before they are measured.
    """
    fixed = trained_genes(config, task, objectives) if repairs else []
    problem = make_problem(config.search, task, objectives, fixed)
    limited = [name for name in problem.limits if isinstance(objectives[name], Damage)]
    if limited and config.search.trials is None:
        raise ConfigError(
            f"search.constraints of {limited[0]} needs search.trials=N instead of search.minutes, which plans a search "
            "before its damages are measured"
        )
    problem.width_genes = task.width_genes if repairs else ()
    return problem


def make_sampler(config: SearchConfig, problem: Problem, damage: ArchDamage | None) -> ArchSampler:
    """The configured sampler of the problem of a search.

    Args:
        damage: the damages of archs; None if not known.

    Raises:
        ConfigError: no arch is within the limits.
    """
    problem.damage = damage
    rng = np.random.default_rng(config.seed)
    problem.draw(rng)  # an infeasible constraint ends the search here
    sampler: ArchSampler = config.search.sampler.build()(problem=problem, seed=config.seed)
    return sampler


def trained_genes(config: SearchConfig, task: Task, objectives: Mapping[str, Objective]) -> list[str]:
    """The genes of one network's parts whose smaller choices need training, if the trials are not trained.

    Trials that are trained keep the head of the network, the only one whose weights there are.
    """
    if config.rungs().steps[-1]:
        branch = task.space.branch
        return [] if branch is None else [branch.name]
    body, repairable = task.table.space.names, task.untrained_genes
    genes = [name for name in task.space.names if name not in body and name not in repairable]
    if SCORE not in objectives:
        genes += [name for name in unseen_genes(task) if name in task.space.names]
    if genes:
        logger.info(
            "%s keep their largest choices: smaller ones need training, or show in no feature", ", ".join(genes)
        )
    return genes


def make_problem(
    keys: SearchKeys, task: Task, objectives: Mapping[str, Objective], fixed: Sequence[str] = ()
) -> Problem:
    """The archs that a search of this task may propose.

    Genes that matter to classification alone keep their largest choice in tasks with an input size of their own, and so
    do `fixed` ones.
    """
    space = task.space
    names = [*fixed, *(() if task.uses_classifier_genes else task.table.classifier_genes)]
    frozen = {name: space.largest()[name] for name in names}
    frozen |= keys.frozen or {}
    space.sample(np.random.default_rng(0), frozen)  # ArchError for an unknown gene
    known = {name: objective for name, objective in objectives.items() if isinstance(objective, ArchCost)}
    limits = {name: limit for name, limit in limits_of(keys.constraints).items() if name in known}

    costs = partial(_known_costs, task, known)
    factors = signs([objective.direction for objective in objectives.values()])

    def known_values(archs: Sequence[Arch]) -> Known:
        values = costs(archs)
        return {k: factors[k] * values[name] for k, name in enumerate(objectives) if name in values}

    return Problem(space, frozen, limits, costs, known_values, task.input_gene, task.weightless_genes, keys.variants)


def _known_costs(task: Task, known: Mapping[str, ArchCost], archs: Sequence[Arch]) -> ArchCosts:
    """The costs by name, without damages that are not measured yet."""
    measured = {name: one for name, one in known.items() if not isinstance(one, Damage) or one.damage is not None}
    return {name: objective.of_archs(task, archs) for name, objective in measured.items()}
