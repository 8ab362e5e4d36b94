"""The damages of the choices of one whole network in a search: measured once, kept in its run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import ChoiceDamage, DamageTable, Usage, files, read_damage
from nas_transfer.runs.phases import Phase
from nas_transfer.search.damage import ArchDamage
from nas_transfer.search.loop import Launch, prepare
from nas_transfer.search.objectives.base import Objective
from nas_transfer.search.objectives.damage import Damage
from nas_transfer.search.objectives.score import Score
from nas_transfer.space import SearchSpace
from nas_transfer.stages.common.slurm_jobs import wait_for_jobs
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.tasks.checkpoint import Checkpoint
from nas_transfer.tasks.damage import DamageMeter
from nas_transfer.tasks.repair import SubnetRepairer

logger = logging.getLogger(__name__)


def cuts_parts(config: SearchConfig, checkpoint: Checkpoint) -> bool:
    """Whether trials are parts of one whole network, which are repaired: one of the task, or a public one."""
    return checkpoint.arch is not None or ranks_public_parts(config, checkpoint)


def ranks_public_parts(config: SearchConfig, checkpoint: Checkpoint) -> bool:
    """Whether parts of a public network with a new neck and head are ranked by their damages, and by no score."""
    if isinstance(config, ProxyConfig) or any(one.target is Score for one in config.search.objectives.values()):
        return False
    return checkpoint.is_public_net and _is_objective(config)


def uses_damage(config: SearchConfig, checkpoint: Checkpoint) -> bool:
    """Whether an objective or the sampler of a search asks for damages, which subnets of one whole network have.

    Raises:
        ConfigError: an objective asks for them, and the weights have none.
    """
    if not cuts_parts(config, checkpoint):
        if _is_objective(config):
            if checkpoint.is_public_net:
                raise ConfigError(
                    "objective=damage with public weights needs stage=search and no score, since the head is new: set "
                    "'objective=[damage,macs]', or add weights=<the folder of a finished run of arch=max>"
                )
            raise ConfigError(
                "objective=damage needs the weights of one whole network, got those of a supernet in "
                f"{checkpoint.path}: add weights=<the folder of a finished run of arch=max>"
            )
        return False
    return asks_for_damage(config)


def asks_for_damage(config: SearchConfig) -> bool:
    """Whether an objective or the sampler of a search asks for damages."""
    sampler = config.search.sampler
    return _is_objective(config) or ("damage" in sampler and bool(sampler["damage"]))


def _is_objective(config: SearchConfig) -> bool:
    return any(objective.target is Damage for objective in config.search.objectives.values())


def prepare_damage(
    config: SearchConfig, space: SearchSpace, checkpoint: Checkpoint, launch: Launch
) -> ArchDamage | None:
    """The damages of archs, None if nothing asks for them; the first job of a search measures those of the choices.

    Raises:
        ConfigError: an objective asks for them, and the weights are those of a supernet.
        RunError: the job failed, or the file in the run folder does not fit.
    """
    if not uses_damage(config, checkpoint):
        return None
    file = config.folder / files.DAMAGE
    if not file.is_file():
        wait_for_jobs(config.folder)
        prepare(config.folder, file, launch)
    return damage_of_run(config, space, checkpoint)


def hold_damage(config: SearchConfig, checkpoint: Checkpoint, repairer: Callable[[], SubnetRepairer]) -> None:
    """Measure the damages of all choices, and write them into the run folder, unless they are there.

    Args:
        repairer: returns what repairs subnets of the whole network; called only if it is needed.
    """
    if not uses_damage(config, checkpoint) or (config.folder / files.DAMAGE).is_file():
        return
    start = time.monotonic()
    meter = DamageMeter(repairer())
    space, device = meter.task.space, meter.task.device
    measured, choices = meter.choices(), []
    logger.info("measuring the damage of %d choices", len(measured))
    for choice in Phase(measured, "damage", "choices"):
        begun = time.monotonic()
        found = meter.damages(choice)
        spent = time.monotonic() - begun
        choices.append(ChoiceDamage(choice.gene, choice.value, found.features, found.outputs, spent))
    order = {name: index for index, name in enumerate(space.names)}
    choices.sort(key=lambda choice: (order[choice.gene], choice.value))
    seconds = time.monotonic() - start
    table = DamageTable(
        space.name, tuple(choices), checkpoint.sha256, config.repair_views, config.seed, seconds, device.type
    )
    table.write(config.folder)
    logger.info("damages of %d choices in %.0f s", len(choices), seconds)


def give_damage(objectives: Mapping[str, Objective], damage: ArchDamage | None) -> None:
    """Let the objectives that ask for damages know them."""
    for objective in objectives.values():
        if isinstance(objective, Damage):
            objective.damage = damage


def damage_of_run(config: SearchConfig, space: SearchSpace, checkpoint: Checkpoint) -> ArchDamage | None:
    """The damages in the run folder of a search, None if it has none."""
    table = _table_of_run(config, checkpoint)
    return None if table is None else ArchDamage(space, table)


def damage_usage(config: SearchConfig) -> Usage:
    """The time that the table took, without training images."""
    table = read_damage(config.folder)
    if table is None:
        return Usage()
    return Usage(0, table.seconds, 0.0 if table.device == "cpu" else table.seconds)


def _table_of_run(config: SearchConfig, checkpoint: Checkpoint) -> DamageTable | None:
    table, path = read_damage(config.folder), config.folder / files.DAMAGE
    if table is None:
        return None
    inputs = {
        "weights": (table.weights_sha256[:12], checkpoint.sha256[:12]),
        "repair_views": (table.repair_views, config.repair_views),
        "seed": (table.seed, config.seed),
    }
    for name, (kept, given) in inputs.items():
        if kept != given:
            raise RunError(f"{path} was measured with {name} {kept}, got {given}: delete the file to measure it again")
    return table
