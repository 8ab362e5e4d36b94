"""The base of all tasks: a network around the body of a supernet, with its losses, metrics, costs and predictions.

The `network` of a task holds the body that a supernet's table builds. For one arch, the network is plain and static.
For `SUPERNET`, it holds the weights of all archs; `Task.set_arch` makes one of them active, and `Task.extract` copies
one out. How a task is trained is the part of `nas_transfer.tasks.training`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as distributed
from pycocotools.coco import COCO
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet, Gene
from nas_transfer.data.parts import Vocabulary
from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.runs import Analysis, TaskKind
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.cost import Cost, CostTotals, totals_by_group
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.deployed import Deployed
from nas_transfer.tasks.devices import to_device
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.normalise import Normalise
from nas_transfer.tasks.prediction import CocoResult, Prediction
from nas_transfer.tasks.tally import Tally

BatchT = TypeVar("BatchT", bound=Mapping[str, object])
OutputsT = TypeVar("OutputsT")


@dataclass(frozen=True)
class TaskSettings:
    """The settings from which every task is built.

    Args:
        table: the table of the supernet.
        arch: the subnet to build, or `SUPERNET`.
        num_classes: taken from the data.
    """

    table: SupernetTable
    arch: ArchOrSupernet
    num_classes: int


@dataclass(frozen=True)
class Teacher(Generic[OutputsT]):
    """The target of the smaller archs of a sandwich (in-place distillation, Yu et al. 2020, BigNAS, section 3.1).

    Args:
        outputs: outputs of the largest arch for the same batch, detached.
        share: weight of the imitation in the loss, in 0-1; the loss against the labels gets the rest.
    """

    outputs: OutputsT
    share: float


class Task(nn.Module, ABC, Generic[BatchT, OutputsT]):
    """The common part of all tasks.

    A subclass builds its network, hands it to the constructor, declares `kind` and implements the abstract methods.
    The network is expected to hold the body of the table as `body`; a subclass that keeps it elsewhere overrides the
    property `body`.

    An arch is the whole network: the genes of the table, which describe the body, and behind them the genes of the
    task, such as the input size or the width of the neck. A task with genes of its own follows them in `set_genes`,
    `input_size` and `head_costs`, and passes `body_arch` of an arch to the table.

    Args:
        settings: table, arch and number of classes.
        network: body, neck and head.
        genes: the genes of the task (`nas_transfer.tasks.genes`).

    Attributes:
        space: all archs: the genes of the table and of the task.
        kind: the name, score and tabulation of this kind of task.
        uses_classifier_genes: whether the genes of the table that only matter to classification have an effect.
        takes_boxes: whether the network sees one box of the image at a time, such as a person.
        pretrains: whether ``stage=pretrain`` trains this kind of task.
        input_gene: the gene that chooses the input size, in spaces that have it; None for tasks without one.
        untrained_genes: the genes of the task whose smaller choices can do with the weights of the largest.
        weightless_genes: the genes that change no weight, such as the input size: one network runs at all choices.
        width_genes: the widths of neck and head among `untrained_genes`, which one would reduce by hand.
        taps: indices of the body's feature maps that neck and head read.
        head_repair: repairs neck and head of a subnet of one trained network (`nas_transfer.tasks.repair`).
        normalise: maps uint8 images to what the weights expect, for networks that do not normalise by themselves.
        ground_truth: annotations of the split that is evaluated, for metrics that compare with COCO's format.
        predictions: predictions of the last `compute_metrics` in COCO's result format, by file name, for tasks that
            keep them.
        keeps_details: whether evaluations keep what `analyse` needs of each image; off in the trials of a search.
        pads_batches: whether images of other sizes in its batch change what an image is padded to (`as_deployed`).
        as_deployed: whether a detector pads each image for itself, as `deployed` does; off in the trials of a search,
            which are scored in whole batches.
    """

    kind: TaskKind
    uses_classifier_genes: ClassVar[bool] = False
    takes_boxes: ClassVar[bool] = False
    pretrains: ClassVar[bool] = False
    pads_batches: ClassVar[bool] = False
    input_gene: ClassVar[str | None] = None
    untrained_genes: tuple[str, ...] = ()
    weightless_genes: tuple[str, ...] = ()
    width_genes: tuple[str, ...] = ()
    taps: tuple[int, ...] = (0, 1, 2, 3)
    head_repair: type[HeadRepair] = HeadRepair

    def __init__(self, settings: TaskSettings, network: nn.Module, genes: Sequence[Gene] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.table = settings.table
        self.arch = settings.arch
        self.space = settings.table.space.extended(genes)
        self._active = self.space.arch_or_largest(settings.arch)
        self.network: nn.Module = network.to(memory_format=torch.channels_last)
        self.normalise: nn.Module = Normalise(settings.table.preprocessing)
        self._followed: tuple[nn.Module, tuple[nn.Module, ...]] | None = None  # of `_followers`
        self.ground_truth: COCO | None = None
        self.predictions: dict[str, list[CocoResult]] = {}
        self.keeps_details = False
        self.as_deployed = True

    @property
    def score_key(self) -> str:
        """The metric that searches maximise."""
        return self.kind.score_key

    @property
    def is_supernet(self) -> bool:
        """Whether the network holds the weights of all archs."""
        return self.arch is SUPERNET

    # Training and evaluation

    @abstractmethod
    def losses(
        self, batch: BatchT, *, regularise: bool, teacher: Teacher[OutputsT] | None
    ) -> tuple[Mapping[str, Tensor], OutputsT]:
        """Compute the named losses of the active arch and the outputs that a smaller arch may imitate.

        Args:
            batch: a training batch.
            regularise: whether dropout is on. In a sandwich it is on for the largest arch only (BigNAS, section 3.3).
            teacher: what the largest arch of this sandwich returned; None to learn from the labels alone.

        Returns:
            The losses, whose sum is minimised, and the detached outputs.
        """

    @abstractmethod
    def forward_batch(self, batch: BatchT) -> object:
        """Run the network on an evaluation batch for its outputs."""

    @abstractmethod
    def update_metrics(self, batch: BatchT) -> None:
        """Predict an evaluation batch and add it to the metrics."""

    @abstractmethod
    def compute_metrics(self) -> dict[str, float]:
        """Return all metrics since the last call, over all ranks, as fractions in 0-1, and reset them."""

    def analyse(self, vocabulary: Vocabulary) -> Analysis | None:
        """Say what the network is good at, from the last `compute_metrics` with `keeps_details`.

        Tasks without an analysis return None. The files of the worst images are filled in by the stage.
        """
        return None

    def keep_tally(self, metric: str) -> None:
        """Keep from now on what `tally` needs of each image.

        Raises:
            ConfigError: the task has no tally for this metric.
        """
        raise ConfigError(
            f"search.race compares networks image by image, which {self.kind.title.lower()} does not offer for the "
            f"metric {metric}: set search.race=null"
        )

    def tally(self, start: int = 0) -> Tally:
        """What the metric of `keep_tally` needs of each image since the last `compute_metrics`, without the first."""
        raise RuntimeError("keep_tally must be called before tally")

    @abstractmethod
    def predict_image(self, batch: BatchT, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Predict one image, given as a batch by `prediction_batch` of the data."""

    def require_images(self, count: int, smallest: int) -> None:
        """Raise ConfigError if a training step has fewer images on its only device than the head can normalise by."""
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        if count < smallest and ranks == 1:
            raise ConfigError(
                f"the BatchNorm of the head needs at least {smallest} images per training step, got {count}: set "
                f"data.batch_size={smallest}, or use several devices with trainer.sync_batchnorm=true"
            )

    def prepared(self, batch: BatchT, arch: Arch) -> BatchT:
        """An evaluation batch as `arch` sees it. Archs of one input size see the same batch."""
        return batch

    def on_device(self, batch: BatchT) -> BatchT:
        """The batch with its tensors on the device of the network."""
        return to_device(batch, self.device)

    # Costs

    @abstractmethod
    def input_size(self, arch: Arch) -> tuple[int, int]:
        """Height and width at which the costs of an arch are stated."""

    @abstractmethod
    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """The costs of what follows the body, by part (``neck``, ``head``), at `input_size`."""

    def resize_factor(self, height: int, width: int) -> float:
        """The scale at which an image of this size enters the network; 1 where images are cropped instead."""
        return 1.0

    def costs(self, arch: Arch) -> dict[str, Cost]:
        """The costs of an arch by part: ``body`` and the parts of `head_costs`, at `input_size`."""
        body = self.table.body_cost(self.body_arch(arch), self.input_size(arch))
        return {"body": body, **self.head_costs(arch)}

    def cost_totals(self, archs: Sequence[Arch]) -> CostTotals:
        """MACs and parameters of many archs: int64 (N,), the sums over the parts of `costs`.

        Raises:
            ArchError: an arch of another space.
        """
        if not archs:
            return CostTotals(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))

        def heads(index: int) -> tuple[int, int]:
            costs = self.head_costs(archs[index]).values()
            return sum(cost.macs for cost in costs), sum(cost.params for cost in costs)

        bodies = [self.body_arch(arch) for arch in archs]
        body = self.table.body_totals(bodies, [self.input_size(arch) for arch in archs])
        genes = np.asarray([arch.values[len(self.table.space.genes) :] for arch in archs], dtype=np.int64)
        keys = np.concatenate([self.table.head_keys(bodies), genes.reshape(len(archs), -1)], 1)
        return body + totals_by_group(keys, heads)

    # Deployment

    @abstractmethod
    def deployed(self) -> Deployed:
        """The network of a subnet as others use it, from raw pixels to named outputs."""

    def deployed_raw(self) -> Deployed | None:
        """The network of a subnet with outputs of which nothing was selected; None where `deployed` selects nothing."""
        return None

    def run_network(self, images: Tensor) -> object:
        """Run the network alone on normalised images (B, 3, H, W), to measure latency and memory."""
        return self.network(images)

    # Archs

    @property
    def body(self) -> nn.Module:
        """The body of the table inside the network."""
        return self.network.body

    @property
    def device(self) -> torch.device:
        """The device of the network; the CPU for a network without parameters."""
        return next(self.network.parameters(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the network; float32 for a network without parameters."""
        return next(self.network.parameters(), torch.empty(0)).dtype

    @property
    def active_arch(self) -> Arch:
        """The arch of the subnet, or the one that is set in the supernet."""
        return self._active

    def body_arch(self, arch: Arch) -> Arch:
        """The part of an arch that describes the body; ArchError for an arch of another space."""
        return self.table.space.part_of(arch)

    def largest_at(self, arch: Arch) -> Arch:
        """The largest arch at the input size of another one."""
        largest = self.space.largest()
        if self.input_gene is None or self.input_gene not in self.space.names:
            return largest
        return self.space.from_dict({**largest.to_dict(), self.input_gene: arch[self.input_gene]})

    def with_weightless_genes_of(self, other: Arch, arch: Arch) -> Arch:
        """An arch with the choices of another one for the genes that change no weight."""
        shared = {name: other[name] for name in self.weightless_genes if name in self.space.names}
        return self.space.from_dict({**arch.to_dict(), **shared})

    def require_subnet(self) -> Arch:
        """The arch of a subnet.

        Raises:
            ArchError: the task is a supernet.
        """
        if self.arch is SUPERNET:
            raise ArchError("the task must be a subnet's, got a supernet's: extract one of its archs")
        return self.arch

    def set_arch(self, arch: Arch) -> None:
        """Make one arch of a supernet the active one.

        Raises:
            ArchError: the task is a single subnet, or `arch` is of another space.
        """
        self._require_supernet("set its arch")
        self.space.validate(arch)
        body = self.body_arch(arch)
        for module in self._followers():
            module.set_arch(body)  # type: ignore[operator]
        self.set_genes(arch)
        self._active = arch

    def _followers(self) -> tuple[nn.Module, ...]:
        """The modules of the network that have a `set_arch`; the network is walked once, since that takes as long."""
        if self._followed is None or self._followed[0] is not self.network:
            found = tuple(m for m in self.network.modules() if callable(getattr(type(m), "set_arch", None)))
            self._followed = (self.network, found)
        return self._followed[1]

    def set_genes(self, arch: Arch) -> None:
        """Make neck and head of a supernet follow the genes of the task in `arch`."""

    def network_of(self, arch: Arch) -> nn.Module:
        """The part of the network that an arch runs, with the names of its subnet: all of it for one head."""
        return self.network

    def head_name(self, arch: Arch) -> str | None:
        """The name of the head of an arch, where a gene chooses among several; None for one head."""
        return None

    def extract(self, arch: Arch) -> Self:
        """Build the task of one subnet: a plain static network with its own copy of the weights.

        Raises:
            ArchError: the task is a single subnet, or `arch` is of another space.
        """
        self._require_supernet("extract an arch")
        subnet = self.rebuild(replace(self.settings, arch=arch))
        subnet.ground_truth = self.ground_truth
        subnet.to(device=self.device, dtype=self.dtype)
        copy_slices(self.network_of(arch), subnet.network)
        return subnet.train(self.training)

    def _require_supernet(self, purpose: str) -> None:
        if self.arch is not SUPERNET:
            raise ArchError(f"only a supernet can {purpose}, got the subnet {self.arch.short_id()}")

    @abstractmethod
    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""

    def calibrate(self, batches: Iterable[BatchT]) -> int:
        """Measure the BatchNorm statistics of a subnet on evaluation batches; returns how many there were.

        Where the body holds all BatchNorms, as in a Faster R-CNN, a pass ends behind it: the rest changes no statistic.
        """
        inside = set(self.body.modules())
        norms = {module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)}
        forward = self._forward_body if norms <= inside else self.forward_batch
        return recalibrate_batch_norm(self.network, map(self.on_device, batches), forward)

    def _forward_body(self, batch: BatchT) -> None:
        """Run the network on an evaluation batch up to the end of the body."""

        def stop(*_: object) -> None:
            raise _BodyDone

        hook = self.body.register_forward_hook(stop)
        try:
            with contextlib.suppress(_BodyDone):
                self.forward_batch(batch)
        finally:
            hook.remove()


class _BodyDone(Exception):
    """Ends a pass behind the body."""
