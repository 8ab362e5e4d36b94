"""Measure what each single choice of an arch does to one trained network: the table behind additive scores.

The largest arch is changed in one gene, and only the blocks that this changes are repaired, without training. The
squared error of what it then computes, relative to the variance, is the damage of the choice. Damages of several
choices are added up (block-wise scores are added up by DONNA, Moons et al. 2021, arXiv 2012.08859,
and by LANA, Molchanov et al. 2022, arXiv 2107.10624).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.repair import LargestWalk
from nas_transfer.tasks.head_repair import picked, resized_batches
from nas_transfer.tasks.repair import SubnetRepairer, Whole
from nas_transfer.tasks.task import Task


@dataclass(frozen=True)
class Choice:
    """One value of one gene."""

    gene: str
    value: int


def measurable_genes(task: Task) -> tuple[str, ...]:
    """The genes of a task whose smaller choices have a damage: they need no training, and their effect can be seen."""
    able = {*task.table.space.names, *task.untrained_genes} - set(unseen_genes(task))
    if not task.uses_classifier_genes:
        able -= set(task.table.classifier_genes)
    return tuple(name for name in task.space.names if name in able)


def unseen_genes(task: Task) -> tuple[str, ...]:
    """The genes whose choices change no output that is compared, such as a number of kept proposals."""
    return tuple(name for name in task.weightless_genes if name != task.input_gene)


@dataclass(frozen=True)
class Damages:
    """What one choice does.

    Attributes:
        features: error of the feature maps that neck and head read; 0 for a choice that changes none.
        outputs: error of the outputs of the network; that of the features where outputs cannot be compared.
    """

    features: float
    outputs: float


class DamageMeter:
    """Measures the damage of single choices on held-out images, as shares of a variance.

    - Features: the maps `Task.taps` of the body. A channel that is missing counts with its variance. Maps of smaller
      images are resized so that the images, without their padding, cover each other.
    - Outputs: `HeadRepair.error`, after the repair of neck and head.

    Args:
        repairer: repairs subnets of the trained network.
    """

    def __init__(self, repairer: SubnetRepairer) -> None:
        self._repairer = repairer
        self._task: Task = repairer.supernet
        self._largest = self._task.space.largest()
        self._whole: Whole = repairer.whole_at(self._largest)
        self._walk: LargestWalk = self._whole.body.walk()
        held = zip(repairer.views, self._whole.body.held_images, strict=False)
        self._held = [picked(batch, images) for batch, images in held if images]

    @property
    def task(self) -> Task:
        """The supernet whose largest arch is the trained network."""
        return self._task

    def arch_of(self, choice: Choice) -> Arch:
        """The largest arch with one choice.

        Raises:
            ArchError: the space has no such gene or no such choice.
            ConfigError: the choice has no damage that can be measured.
        """
        arch = self._task.space.with_value(self._largest, choice.gene, choice.value)
        if choice.gene not in measurable_genes(self._task):
            raise ConfigError(
                f"the damage of {choice.gene}={choice.value} cannot be measured: its effect needs training or shows in "
                f"no feature, so that {choice.gene} keeps {self._largest[choice.gene]} in a search of damage"
            )
        return arch

    def choices(self) -> list[Choice]:
        """All choices below the largest, in the order in which they are measured fastest."""
        genes, measurable = self._task.space.genes, set(measurable_genes(self._task))
        choices = [Choice(gene.name, value) for gene in genes if gene.name in measurable for value in gene.choices[:-1]]
        return sorted(choices, key=self._first_block)

    @torch.no_grad()
    def damages(self, choice: Choice) -> Damages:
        """The damages of one choice alone; the errors are those of `arch_of`."""
        arch = self.arch_of(choice)
        if choice.value == self._largest[choice.gene]:
            return Damages(0.0, 0.0)
        subnet = self._task.extract(arch).eval()
        whole, probes = self._whole, self._whole.body.probes
        images, stretches = probes.images, None
        resized = choice.gene == self._task.input_gene
        if resized:
            batches = resized_batches(subnet, self._held)
            large = resized_batches(whole.task, self._held)
            images = [batch.images for batch in batches]
            stretches = [one.stretches_to(other) for one, other in zip(large, batches, strict=True)]
        elif whole.body.changed(subnet.body):
            whole.body.repair_changes(subnet.body, self._walk)
        features = probes.damage([subnet.body(batch) for batch in images], self._task.taps, stretches)
        if not resized:
            whole.head.repair(subnet)
        outputs = whole.head.error(whole.task, subnet, self._held)
        return Damages(features, features if outputs is None else outputs)

    def _first_block(self, choice: Choice) -> int:
        """The first block that a choice changes; -1 if it changes none."""
        if choice.gene not in self._task.table.space.names or choice.gene == self._task.input_gene:
            return -1
        body = self._task.extract(self.arch_of(choice)).eval().body
        blocks = self._whole.body.changed(body)
        return blocks.start if blocks else -1
