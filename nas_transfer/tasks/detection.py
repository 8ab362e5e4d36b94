"""Object detection: one of torchvision's detectors around the elastic body.

The largest arch of a sandwich may teach the smaller ones its pyramid (feature distillation as in FitNets, Romero et al.
2015), whose leading channels and levels they share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.arch import SUPERNET, Arch, Gene
from nas_transfer.data.drawing import Picture, as_guess, draw_instances
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import DetectionBatch
from nas_transfer.runs import Analysis, TaskKind
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.tasks.box_tally import THRESHOLDS, BoxTally
from nas_transfer.tasks.coco_analysis import analyse_detections
from nas_transfer.tasks.coco_metrics import paste_mask, to_coco_results
from nas_transfer.tasks.deployed import TOP_STRIDE, Deployed
from nas_transfer.tasks.detection_head import DetectionHead
from nas_transfer.tasks.detector import PyramidMaps, pyramid_distance
from nas_transfer.tasks.genes import Choices, task_genes, values_of
from nas_transfer.tasks.metrics import CocoMetric
from nas_transfer.tasks.normalise import in_order
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.raw_detectors import OUTPUTS, OneStage
from nas_transfer.tasks.several_detectors import KEY, SeveralDetectors
from nas_transfer.tasks.task import Task, TaskSettings, Teacher
from nas_transfer.tasks.traced_resizing import with_traced_resizing

RESULT_FILES = {"bbox": "predictions", "segm": "predictions_segm"}
"""Names of the files of predicted boxes and masks."""
MEANINGS = {
    "boxes": "(N, 4) xyxy: left, top, right, bottom, in pixels of the input image",
    "labels": "(N,), integers",
    "scores": "(N,) in 0-1",
    "masks": "(N, 1, M, M), probabilities inside each box",
}
"""What the outputs of a deployed detector are."""
RAW_MEANINGS = {
    "boxes": "(B, N, 4) xyxy: left, top, right, bottom, in pixels of the input image, of all N anchors",
    "scores": "(B, N, classes) in 0-1",
}
"""The same without a selection of boxes."""


class DetectionTask(Task[DetectionBatch, PyramidMaps]):
    """A detector on boxes in COCO's format, scored by COCO's mAP. `ground_truth` must be set before an evaluation.

    Args:
        settings: `num_classes` does not count the background.
        detector: the sizes of the detector, the largest ones for a supernet; or several detectors, among which an arch
            chooses.
        genes: smaller choices of the genes of the detector, of ``min_size`` alone for several detectors. The long side
            of an image follows ``min_size``.
        category_ids: the COCO category ids of the data in the order of the labels; empty for a task without data, which
            only states costs.

    Raises:
        ConfigError: an unknown gene, or a choice that the detector cannot have.
    """

    kind = TaskKind("detection", "Object detection", "map", model="faster_rcnn", score_label="mAP", size_label=None)
    input_gene = "min_size"
    outputs: ClassVar[tuple[str, ...]] = ("boxes", "labels", "scores")
    pads_batches: ClassVar[bool] = True
    detector: DetectionHead | SeveralDetectors

    def __init__(
        self,
        settings: TaskSettings,
        *,
        detector: DetectionHead | SeveralDetectors,
        genes: Choices | None = None,
        category_ids: Sequence[int] = (),
    ) -> None:
        arch = None if settings.arch is SUPERNET else settings.arch
        largest = detector if arch is None else sizes_of(detector, arch)
        own_genes = genes_of(detector, genes)
        super().__init__(settings, largest.build(settings), own_genes)
        self.kind = replace(type(self).kind.with_model(detector.model), model=largest.model)
        self.untrained_genes, self.head_repair = detector.untrained_genes, detector.head_repair
        self.weightless_genes, self.width_genes = detector.weightless_genes, detector.width_genes
        self.category_ids = list(category_ids)
        self.detector = detector
        self.choices = genes
        self.metric = CocoMetric(category_ids, with_masks="masks" in self.outputs)
        self._tallied: tuple[str, tuple[float, ...]] = ("bbox", THRESHOLDS["map"])

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(settings, category_ids=self.category_ids, detector=self.detector, genes=self.choices)

    def sizes(self, arch: Arch) -> DetectionHead:
        """The sizes of the detector of an arch."""
        return sizes_of(self.detector, arch)

    def set_genes(self, arch: Arch) -> None:
        """Make image size, neck and heads of a supernet those of an arch."""
        if isinstance(self.detector, SeveralDetectors):
            self.network.active = self.detector.candidates.name(arch)
        self.sizes(arch).follow(self.network_of(arch))

    def network_of(self, arch: Arch) -> nn.Module:
        """The network of the detector of an arch."""
        if isinstance(self.detector, SeveralDetectors) and self.is_supernet:
            return self.network.networks[self.detector.candidates.name(arch)]
        return self.network

    def head_name(self, arch: Arch) -> str | None:
        """The name of the detector of an arch, if there are several."""
        return self.detector.candidates.name(arch) if isinstance(self.detector, SeveralDetectors) else None

    @property
    def body(self) -> nn.Module:
        """The body of the table inside the network."""
        return self.network.backbone.body

    def losses(
        self, batch: DetectionBatch, *, regularise: bool, teacher: Teacher[PyramidMaps] | None
    ) -> tuple[dict[str, Tensor], PyramidMaps]:
        """The losses of the detector and, with a teacher, the distance to its pyramid. The detector has no dropout."""
        self.require_images(len(batch["images"]), self.sizes(self.active_arch).smallest_batch)
        network = self.network_of(self.active_arch)
        with _outputs_of(network.backbone) as pyramids, _outputs_of(network.transform) as transformed:
            losses = self.network(self.as_floats(batch["images"]), batch["targets"])
        images = transformed[0][0]
        shares = torch.tensor(images.image_sizes) / torch.tensor(images.tensors.shape[2:])
        maps = PyramidMaps(pyramids[0], shares.flip(1))
        if teacher is not None:
            losses = {name: (1 - teacher.share) * loss for name, loss in losses.items()}
            losses["distillation"] = teacher.share * pyramid_distance(maps, teacher.outputs)
        return losses, replace(maps, levels={name: level.detach() for name, level in maps.levels.items()})

    def as_floats(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 images as torchvision's detectors take them, which normalise by themselves."""
        return [in_order(image, self.table.preprocessing).to(self.dtype) for image in images]

    def run_network(self, images: Tensor) -> object:
        """Run the whole detector, resizing included."""
        return self.network(list(images))

    def deployed(self) -> Deployed:
        """The detector with its resizing, for one image: boxes (N, 4) xyxy in pixels, labels (N,) and scores (N,)."""
        module = _DeployedDetector(self.network, self.table.preprocessing, self.outputs)
        meanings = {name: MEANINGS[name] for name in self.outputs}
        return Deployed(module, self.outputs, one_image=True, meanings=meanings, first_label=1)

    def deployed_raw(self) -> Deployed | None:
        """All boxes and scores of a batch of images of one size, before non-maximum suppression.

        None for a detector of two stages, whose second stage needs a selection of the boxes of the first.
        """
        sizes = self.sizes(self.active_arch)
        if not isinstance(sizes, OneStage):
            return None
        height, width = (-(-side // TOP_STRIDE) * TOP_STRIDE for side in (sizes.min_size, sizes.max_size))
        module = sizes.raw(self.normalise, self.network, (height, width))
        return Deployed(module, OUTPUTS, size=(height, width), meanings=RAW_MEANINGS, first_label=0)

    def forward_batch(self, batch: DetectionBatch) -> list[dict[str, Tensor]]:
        """Boxes (N, 4) xyxy in pixels of the image, labels (N,) in 1..C and scores (N,), for each image."""
        return self.network(self.as_floats(batch["images"]))

    def predict_image(self, batch: DetectionBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Boxes in ``predictions.json``."""
        output = {name: values.cpu() for name, values in self.forward_batch(batch)[0].items()}
        boxes = to_coco_results([image_id], [output], vocabulary.ids)
        return Prediction({"predictions.json": boxes}, partial(draw_detections, output, vocabulary.names))

    def update_metrics(self, batch: DetectionBatch) -> None:
        """Predict a batch and keep the detections.

        As deployed, only images of one size share a pass, since the padding to a common size changes what is detected.
        """
        image_ids = [int(target["image_id"]) for target in batch["targets"]]
        sizes = [(image.shape[-2], image.shape[-1]) for image in batch["images"]]
        if not self.as_deployed:
            self.metric.update(image_ids, self.forward_batch(batch), sizes)
            return
        outputs: dict[int, dict[str, Tensor]] = {}
        for size in dict.fromkeys(sizes):
            alike = [index for index, other in enumerate(sizes) if other == size]
            found = self.network(self.as_floats([batch["images"][index] for index in alike]))
            outputs |= dict(zip(alike, found, strict=True))
        self.metric.update(image_ids, [outputs[index] for index in range(len(sizes))], sizes)

    def keep_tally(self, metric: str) -> None:
        """Keep what matches in each image, for ``map``, ``map_50`` or ``map_75``, of masks with ``_segm`` behind."""
        kind, name = ("segm", metric.removesuffix("_segm")) if metric.endswith("_segm") else ("bbox", metric)
        if name not in THRESHOLDS or (kind == "segm" and not self.metric.with_masks):
            super().keep_tally(metric)
        self._tallied = (kind, THRESHOLDS[name])

    def tally(self, start: int = 0) -> BoxTally:
        """What matches in each image since the last `compute_metrics`, without the first."""
        self.metric.ground_truth = self.ground_truth
        kind, thresholds = self._tallied
        return self.metric.tally("segm" if kind == "segm" else "bbox", thresholds, start)

    def compute_metrics(self) -> dict[str, float]:
        """Return COCO's average precisions and recalls, ``map`` first, and reset them.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        self.metric.ground_truth = self.ground_truth
        metrics = self.metric.compute()
        self.metric.reset()
        self.predictions = {RESULT_FILES[kind]: results for kind, results in self.metric.results.items()}
        return metrics

    def analyse(self, vocabulary: Vocabulary) -> Analysis | None:
        """Average precision by class, curves, confusion matrix and worst images of the last evaluation."""
        if self.ground_truth is None or not self.metric.evaluated:
            return None
        return analyse_detections(
            self.ground_truth, self.metric.results, self.metric.evaluated, self.category_ids, vocabulary.names
        )

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """min_size x max_size of the arch, as the literature states costs of detectors (800 x 1333)."""
        sizes = self.sizes(arch)
        return sizes.min_size, sizes.max_size

    def resize_factor(self, height: int, width: int) -> float:
        """The scale at which the short side becomes min_size, or a smaller one if the long side exceeds max_size."""
        sizes = self.sizes(self.active_arch)
        return min(sizes.min_size / min(height, width), sizes.max_size / max(height, width))

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """The parts of the detector behind the body, ``neck`` and ``head``."""
        channels = self.table.feature_channels(self.body_arch(arch))
        return self.sizes(arch).costs(channels, self.settings.num_classes)


def genes_of(detector: DetectionHead | SeveralDetectors, choices: Choices | None) -> tuple[Gene, ...]:
    """The genes of the task; ConfigError for a choice that a detector cannot have."""
    if isinstance(detector, SeveralDetectors):
        for name, one in detector.candidates.largest.items():
            _check_choices(one, task_genes(one.genes, detector.of[name]["genes"], f"{KEY}.of.{name}.genes"))
        return detector.task_genes(choices)
    genes = task_genes(detector.genes, choices)
    _check_choices(detector, genes)
    return genes


def _check_choices(detector: DetectionHead, genes: Sequence[Gene]) -> None:
    for gene in genes:
        for choice in gene.choices:
            _with_values(detector, {gene.name: choice})


def sizes_of(detector: DetectionHead | SeveralDetectors, arch: Arch) -> DetectionHead:
    """The sizes of the detector of an arch; the long side follows the short one."""
    if isinstance(detector, SeveralDetectors):
        detector, values = detector.chosen(arch)
    else:
        values = values_of(detector.genes, arch)
    longest = round(detector.max_size * values["min_size"] / detector.min_size)
    return _with_values(detector, {**values, "max_size": longest})


def _with_values(detector: DetectionHead, values: Mapping[str, int]) -> DetectionHead:
    return replace(detector, **values)  # type: ignore[type-var]  # a dataclass, whose genes are integers


class _DeployedDetector(nn.Module):
    """A detector from one raw RGB image (1, 3, H, W) to its named outputs."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.preprocessing, self.outputs = with_traced_resizing(network), preprocessing, tuple(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the only image."""
        detections = self.network([in_order(images[0], self.preprocessing)])[0]
        return tuple(detections[name] for name in self.outputs)


MOST_GUESSES = 5
"""Detections that are drawn where none reaches the threshold."""


def draw_detections(
    output: Mapping[str, Tensor], names: Sequence[str], image: Tensor, threshold: float, side: int
) -> Picture:
    """Draw the boxes, and masks if there are any, of all detections with at least this score on an image.

    Where no score reaches it, the `MOST_GUESSES` best detections are drawn, paler.
    """
    sure = output["scores"] >= threshold
    if not sure.any() and len(sure):
        best = output["scores"].topk(min(MOST_GUESSES, len(sure))).indices
        guesses = {name: values[best] for name, values in output.items()}
        return as_guess(draw_detections(guesses, names, image, 0.0, side), image, side)
    boxes, scores = output["boxes"][sure], output["scores"][sure].tolist()
    labels = [label - 1 for label in output["labels"][sure].tolist()]
    masks = None
    if "masks" in output and len(boxes):
        size = (image.shape[1], image.shape[2])
        masks = torch.stack([paste_mask(*pair, size) for pair in zip(output["masks"][sure], boxes, strict=True)])
    return draw_instances(image, boxes, labels, names, masks, scores, side)


@contextlib.contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what a module returns while it runs inside a larger network."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
