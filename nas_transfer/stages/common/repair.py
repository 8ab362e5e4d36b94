"""Cut repaired subnets out of the weights of one whole network."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Evaluation, Front, Trial, files
from nas_transfer.runs.versions import versions
from nas_transfer.search.loop import SearchLoop
from nas_transfer.search.study import Study
from nas_transfer.stages.common.build import build_task, evaluation_device
from nas_transfer.stages.config.base import DataRunConfig
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.stages.config.trained import trained_config
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, inherit, load_whole, save_checkpoint
from nas_transfer.tasks.repair import SubnetRepairer
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)


def build_repairer(
    config: DataRunConfig,
    table: SupernetTable,
    checkpoint: Checkpoint,
    data: DownstreamData,
    repeat: int = 0,
    *,
    shared: bool = False,
    body_alone: bool = False,
    device: torch.device | None = None,
) -> SubnetRepairer:
    """Repairs the subnets of a whole network on the device that evaluates. Those of a public one get a new head.

    Args:
        repeat: another one draws other views.
        shared, body_alone: see `SubnetRepairer`.
        device: another one than that which evaluates.

    Raises:
        ConfigError: subnets of this family cannot be repaired.
        WeightsError: the weights do not fit the task.
    """
    supernet = build_task(config, table, SUPERNET, data)
    if checkpoint.is_public_net:
        inherit(supernet, checkpoint)
    else:
        load_whole(supernet, checkpoint)
    supernet.to(device or evaluation_device(config.trainer.accelerator))
    views = data.view_dataloader(config.repair_views, repeat)
    return SubnetRepairer(supernet, views, shared=shared, body_alone=body_alone)


def extract_repaired(
    config: DataRunConfig, table: SupernetTable, checkpoint: Checkpoint, arch: Arch, data: DownstreamData
) -> Task:
    """The task of a repaired subnet on the CPU, in eval mode; the errors are those of `build_repairer`."""
    start = time.monotonic()
    subnet = build_repairer(config, table, checkpoint, data).extract(arch)
    seconds = time.monotonic() - start
    logger.info("arch %s is cut out of %s and repaired (%.0f s)", arch.short_id(), checkpoint.path, seconds)
    return subnet.cpu()


class RepairedTrials:
    """Cuts repaired subnets out of a whole network, and keeps those that are asked for as run folders.

    The views of one repeat at a time are in memory.

    Attributes:
        checkpoint: the weights of the whole network.
    """

    def __init__(
        self, config: SearchConfig, table: SupernetTable, checkpoint: Checkpoint, data: DownstreamData
    ) -> None:
        self._config, self.checkpoint = config, checkpoint
        self._build = partial(build_repairer, config, table, checkpoint, data, shared=config.search.variants > 0)
        self._repeat = 0
        self._repairer: SubnetRepairer | None = None

    def repairer(self, repeat: int = 0) -> SubnetRepairer:
        """What repairs the subnets of a repeat, built when it is first asked for."""
        if self._repairer is None or repeat != self._repeat:
            self._repeat, self._repairer = repeat, self._build(repeat=repeat)
        return self._repairer

    @property
    def whole(self) -> Task:
        """The whole network, with its channels in the order of its subnets."""
        return self.repairer(self._repeat).whole

    def __call__(self, evaluation: Evaluation) -> Task:
        repairer = self.repairer(evaluation.repeat)
        arch = repairer.supernet.space.from_dict(evaluation.arch)
        if self.checkpoint.is_public_net:  # nothing is scored, so that an objective needs no repaired weights
            return repairer.supernet.extract(arch).eval()
        subnet = repairer.extract(arch)
        if evaluation.keep:
            self._write(subnet, files.network_folder(self._config.folder, evaluation.trial))
        return subnet

    def _write(self, subnet: Task, folder: Path) -> None:
        (folder / files.CONFIG).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._config.folder / files.CONFIG, folder / files.CONFIG)
        save_checkpoint(
            folder / files.WEIGHTS, subnet, parent=self.checkpoint, metrics={}, versions=versions(),
            stage=self._config.stage.name, config_sha256=self._config.config_sha256,
        )  # fmt: skip


def remove_networks(folder: Path, study: Study) -> None:
    """Delete the networks of finished trials that are not on the front.

    Args:
        folder: the run folder of the search.
        study: its study, whose workers may begin and finish trials meanwhile.
    """
    folders = [path for path in (folder / files.NETWORKS_FOLDER).glob("trial_*") if path.is_dir()]
    left = study.finished() - set(study.front())
    for network in folders:
        if int(network.name.removeprefix("trial_")) in left:
            shutil.rmtree(network)
            network.with_suffix(".json").unlink(missing_ok=True)


def write_networks(loop: SearchLoop, front: Front, weightless: Sequence[str]) -> Front:
    """Write the network of each trial of the front as a run folder of its own, unless the trial has kept it.

    Args:
        weightless: genes that change no weight; archs that differ in them alone are written one after the other.

    Returns:
        The front with the metrics of the networks.

    Raises:
        RunError: a network could not be written.
    """
    space = loop.study.space

    def weights_of(trial: Trial) -> list[int]:
        arch = space.from_dict(trial.arch)
        return [arch[name] for name in space.names if name not in weightless]

    missing = [trial for trial in front.trials if not (trial.metrics and _has_network(loop.folder, trial))]
    evaluations = [
        Evaluation(trial.number, trial.arch, files.network_outcome(trial.number), keep=True)
        for trial in sorted(missing, key=weights_of)
    ]
    for trial in missing:
        if not _has_network(loop.folder, trial):
            (loop.folder / files.network_outcome(trial.number)).unlink(missing_ok=True)
    if missing:
        logger.info("writing %d networks of the front", len(missing))
    metrics = {outcome.trial: outcome.metrics for outcome in loop.outcomes(evaluations)}
    remove_networks(loop.folder, loop.study)
    scored = (replace(trial, metrics=trial.metrics or metrics[trial.number]) for trial in front.trials)
    return replace(front, trials=tuple(scored))


def _has_network(folder: Path, trial: Trial) -> bool:
    return (files.network_folder(folder, trial.number) / files.WEIGHTS).is_file()


def check_scored_images(config: SearchConfig, *, repairs: bool) -> None:
    """Say so if a whole network was trained on the images that its subnets are scored on.

    Args:
        repairs: whether the archs are subnets of one whole network.

    Raises:
        ConfigError: archs that are trained together or alone would be scored on all images that they were trained on.
    """
    split = config.data["split"]
    assert isinstance(split, Mapping)
    scores_on_all = split["search_fraction"] == 1 and config.search.folds is None
    if scores_on_all and (not repairs or isinstance(config, ProxyConfig)):
        raise ConfigError(
            "data.split.search_fraction=1 scores archs on the images that they were trained on, and is for "
            "stage=search of one whole network, whose subnets are not trained: lower it"
        )
    if scores_on_all:
        logger.info(
            "subnets are scored on all of train, on which the network was trained: the scores rank them, but are "
            "higher than those on new images"
        )
    elif repairs and not was_held_out(config):
        logger.warning(
            "the network was trained on images of the search split, so that scores are too high: score on all of train "
            "(data.split.search_fraction=1), or train with data.split.hold_out_search=true, and search with the same "
            "seed and data.split.search_fraction"
        )


def was_held_out(config: SearchConfig) -> bool:
    """Whether the training of these weights kept out the search split of this search; True where that is not known.

    Another share or another seed draws another split, some of whose images were then trained on.
    """
    trained = trained_config(config.weights)
    if trained is None:
        return True
    drawn = trained.data.split.search_fraction, trained.seed
    split = config.data["split"]
    assert isinstance(split, Mapping)
    return trained.data.split.hold_out_search is True and drawn == (split["search_fraction"], config.seed)
