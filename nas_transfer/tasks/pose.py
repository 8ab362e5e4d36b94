"""Top-down pose estimation: the keypoints of the person in a crop, scored by COCO's AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.data.drawing import Picture, draw_persons
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import PoseBatch
from nas_transfer.ranges import Positive
from nas_transfer.runs import Analysis, TaskKind
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.coco_metrics import Persons, to_coco_keypoints
from nas_transfer.tasks.deployed import Deployed, DeployedNetwork
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.keypoint_analysis import analyse_keypoints
from nas_transfer.tasks.keypoint_head import KeypointHead
from nas_transfer.tasks.metrics import KeypointMetric
from nas_transfer.tasks.pose_crops import resized, resized_crops
from nas_transfer.tasks.pose_sizes import INPUT_HEIGHT, PoseSizes
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.several_keypoints import SeveralKeypointHeads, SeveralKeypointNetworks, SeveralPoseSizes
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

MEANINGS = {
    "heatmaps": "(B, keypoints, h, w); a keypoint is where its map is largest, and cell i of a map that is s times "
    "smaller than the crop covers the pixels s i to s i + s - 1",
    "simcc": "(B, keypoints, columns + rows), logits of the position across and down, at one scale for both",
}
"""What the outputs of the heads are."""


class PoseTask(Task[PoseBatch, Tensor]):
    """A head behind the last map of the body. In a sandwich, the smaller archs imitate the outputs of the largest one.

    Crops are loaded at the largest size, and resized on the device for archs with a smaller one. `ground_truth` must be
    set before an evaluation.

    Args:
        settings: `num_classes` is the number of keypoints K.
        head: the largest sizes of the head; or several heads, among which an arch chooses.
        input_size: (H, W) of the largest crops, multiples of 32.
        category_id: COCO id of the category, for predictions.
        flip_pairs: indices of left and right keypoints.
        sigmas: (K,) of the object keypoint similarity. A task without data, which only states costs, needs neither
            this nor the two before.
        genes: smaller choices of ``input_height`` and of the genes of the head (`PoseSizes`), of ``input_height`` alone
            for several heads; None if everything is fixed.

    Raises:
        ConfigError: an input size that is no multiple of 32, or choices that cannot be.
    """

    kind = TaskKind(
        "pose", "Pose estimation", "ap", classes_are="keypoints", model="topdown", score_label="AP",
        macs_part="body", shows_schedule=False,
    )  # fmt: skip
    takes_boxes = True
    input_gene = INPUT_HEIGHT
    weightless_genes = (INPUT_HEIGHT,)
    taps = (3,)

    def __init__(
        self,
        settings: TaskSettings,
        *,
        head: KeypointHead | SeveralKeypointHeads,
        input_size: Sequence[Positive],
        category_id: int = 1,
        flip_pairs: Sequence[Sequence[int]] = (),
        sigmas: Sequence[float] = (),
        genes: Choices | None = None,
    ) -> None:
        table, arch = settings.table, settings.arch
        crop_size = (int(input_size[0]), int(input_size[1]))
        sizes = _sizes_of(head, crop_size, genes, table.space)
        network = _network_of(sizes, settings)
        super().__init__(settings, network, sizes.genes)
        own = head if arch is SUPERNET else sizes.head(arch)
        self.kind = replace(type(self).kind.with_model(head.model), model=own.model)
        self.untrained_genes = (INPUT_HEIGHT, *head.untrained_genes)
        self.sizes = sizes
        self.choices = genes
        self.head = head
        self.crop_size = crop_size
        self.category_id = category_id
        self.flip_pairs = [list(pair) for pair in flip_pairs]
        self.sigmas = list(sigmas)
        self.metric = KeypointMetric(settings.num_classes, category_id, self.sigmas, head.oks_threshold)

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(
            settings, head=self.head, input_size=self.crop_size, category_id=self.category_id,
            flip_pairs=self.flip_pairs, sigmas=self.sigmas, genes=self.choices,
        )  # fmt: skip

    def set_genes(self, arch: Arch) -> None:
        """Make the head of a supernet that of the arch."""
        if isinstance(self.sizes, SeveralPoseSizes):
            self.network.several.active = self.sizes.candidates.name(arch)
        self.sizes.head(arch).follow(self.network_of(arch))

    def network_of(self, arch: Arch) -> nn.Module:
        """The network of the head of an arch."""
        if isinstance(self.sizes, SeveralPoseSizes) and self.is_supernet:
            return self.network.several.networks[self.sizes.candidates.name(arch)]
        return self.network

    def head_name(self, arch: Arch) -> str | None:
        """The name of the head of an arch, if there are several."""
        return self.sizes.candidates.name(arch) if isinstance(self.sizes, SeveralPoseSizes) else None

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 crops, or those of `prepared`, to the outputs (B, K, ...) of the active arch."""
        return self.network(self._inputs(images, self.active_arch) if images.dtype == torch.uint8 else images)

    def prepared(self, batch: PoseBatch, arch: Arch) -> PoseBatch:
        """The batch with crops as `arch` sees them, and keypoints and maps to the image in their frame.

        Resized crops are normalised: float (B, 3, H, W). A batch of the right size is returned as it is.
        """
        size = self.input_size(arch)
        if not self.sizes.resizes or batch["images"].shape[-2:] == size:
            return batch
        return resized_crops(batch, self.normalise(batch["images"].to(self.device)), size)

    def _inputs(self, images: Tensor, arch: Arch) -> Tensor:
        inputs = self.normalise(images)
        return resized(inputs, self.input_size(arch)) if self.sizes.resizes else inputs

    def losses(
        self, batch: PoseBatch, *, regularise: bool, teacher: Teacher[Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The loss of the head against labelled keypoints, and against a teacher. The network has no dropout."""
        batch, head = self.prepared(batch, self.active_arch), self.sizes.head(self.active_arch)
        outputs = self(batch["images"])
        share = 0.0 if teacher is None else teacher.share
        factor = self.sizes.of(self.active_arch).loss_factor(tuple(outputs.shape[2:]), head)
        losses = {}
        if share < 1:
            losses[head.output] = factor * (1 - share) * head.loss(outputs, batch)
        if teacher is not None and share > 0:
            losses["distillation"] = factor * share * head.imitation(outputs, teacher.outputs)
        return losses, outputs.detach()

    def deployed(self) -> Deployed:
        """The outputs of the head, ``heatmaps`` for instance, of crops around persons at the input size of the arch.

        If all archs have the same input size, sides may be any multiples of 32.
        """
        size = self.input_size(self.active_arch) if self.sizes.resizes else None
        output = self.sizes.head(self.active_arch).output
        meanings = {output: MEANINGS[output]} if output in MEANINGS else {}
        return Deployed(DeployedNetwork(self.normalise, self.network), (output,), size, meanings=meanings)

    def forward_batch(self, batch: PoseBatch) -> Tensor:
        """The outputs of an evaluation batch."""
        return self(batch["images"])

    def predict(self, batch: PoseBatch) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (B, K, 2) in the pixel-index frame of the image and their scores (B, K), float64."""
        batch, head = self.prepared(batch, self.active_arch), self.sizes.head(self.active_arch)
        outputs = self(batch["images"])
        if head.flip_test:
            outputs = (outputs + head.mirrored(self(batch["images"].flip(3)), self.flip_pairs)) / 2
        size = self.input_size(self.active_arch) if self.sizes.resizes else batch["images"].shape[2:]
        points, scores = head.decode(outputs.float(), (size[0], size[1]))
        to_image = batch["to_image"].double()
        moved = torch.einsum("bij,bkj->bki", to_image[:, :, :2], points.double()) + to_image[:, None, :, 2]
        return moved.cpu().numpy(), scores.double().cpu().numpy()

    def predict_image(self, batch: PoseBatch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Persons without duplicates in ``predictions.json``."""
        persons = self.predict_persons({**batch, "image_ids": torch.full_like(batch["image_ids"], image_id)})
        results = to_coco_keypoints(persons, self.category_id, self.sigmas, self.head.oks_threshold)

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            rows = [torch.tensor(person["keypoints"]).reshape(-1, 3) for person in results]
            sure = [(row[:, 2] >= threshold).tolist() for row in rows]
            points = [row[:, :2] for row in rows]
            return draw_persons(image, points, sure, vocabulary.edges, vocabulary.flip_pairs, side)

        return Prediction({"predictions.json": results}, draw)

    def predict_persons(self, batch: PoseBatch) -> Persons:
        """The persons of a batch. The score of a person is that of its box times the mean of its sure keypoints."""
        points, point_scores = self.predict(batch)
        certainties = [self._certainty(scores) for scores in point_scores]
        return Persons(
            sample_ids=batch["sample_ids"].cpu().numpy(),
            image_ids=batch["image_ids"].cpu().numpy(),
            areas=batch["areas"].cpu().double().numpy(),
            scores=batch["box_scores"].cpu().double().numpy() * np.asarray(certainties),
            points=points,
            point_scores=point_scores,
        )

    def _certainty(self, scores: np.ndarray) -> float:
        """The mean score of the keypoints above the threshold; 0 if all are below."""
        sure = scores[scores > self.head.score_threshold]
        return float(sure.mean()) if len(sure) else 0.0

    def update_metrics(self, batch: PoseBatch) -> None:
        """Predict a batch and keep its persons."""
        self.metric.update(self.predict_persons(batch))

    def compute_metrics(self) -> dict[str, float]:
        """Return COCO's average precisions and recalls by OKS, ``ap`` first, and reset them.

        Raises:
            RuntimeError: `ground_truth` is not set.
        """
        self.metric.ground_truth = self.ground_truth
        metrics = self.metric.compute()
        self.metric.reset()
        self.predictions = {"predictions": self.metric.results}
        return metrics

    def analyse(self, vocabulary: Vocabulary) -> Analysis | None:
        """Correct keypoints by name, curves and worst images of the last evaluation."""
        if self.ground_truth is None:
            return None
        return analyse_keypoints(
            self.ground_truth, self.metric.results, self.category_id, vocabulary.names, self.sigmas
        )

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The size of the crops of an arch."""
        return self.sizes.input_size(arch)

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``."""
        channels = self.table.feature_channels(self.body_arch(arch))[-1]
        return {"head": self.sizes.head(arch).cost(channels, self.input_size(arch), self.settings.num_classes)}


def _sizes_of(
    head: KeypointHead | SeveralKeypointHeads, input_size: tuple[int, int], choices: Choices | None, body: SearchSpace
) -> PoseSizes | SeveralPoseSizes:
    if isinstance(head, SeveralKeypointHeads):
        return SeveralPoseSizes(head, input_size, choices, body)
    return PoseSizes(head, input_size, choices, body)


def _network_of(sizes: PoseSizes | SeveralPoseSizes, settings: TaskSettings) -> nn.Module:
    """The network of one arch, or the elastic one of the supernet."""
    table, arch = settings.table, settings.arch
    channels = table.feature_channels(table.space.arch_or_largest(arch))[-1]
    layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)

    def build(body: nn.Module, one: PoseSizes, head: KeypointHead) -> nn.Module:
        return head.build(body, channels, settings.num_classes, layers, one.choices)

    body = build_body(table, arch)
    if arch is not SUPERNET:
        return build(body, sizes.of(arch), sizes.head(arch))
    if isinstance(sizes, PoseSizes):
        return build(body, sizes, sizes.largest_head)
    return SeveralKeypointNetworks({name: build(body, one, one.largest_head) for name, one in sizes.by_name.items()})
