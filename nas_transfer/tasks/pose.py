"""Top-down pose estimation: one heatmap for each keypoint of a crop (Xiao et al. 2018), scored by COCO's AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.data.drawing import Picture, draw_persons
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.samples import PoseBatch
from nas_transfer.errors import ConfigError
from nas_transfer.runs import TaskKind
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.coco_metrics import Persons, to_coco_keypoints
from nas_transfer.tasks.deployed import TOP_STRIDE, Deployed, DeployedNetwork
from nas_transfer.tasks.heatmaps import decode_heatmaps, encode_heatmaps, mirror_heatmaps
from nas_transfer.tasks.metrics import KeypointMetric
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

DECONVOLUTION_KERNEL = 4


@dataclass(frozen=True)
class PoseHeadSize:
    """The sizes of the heatmap head.

    Args:
        channels: channels of each deconvolution, which doubles height and width. Three of 256 in the paper give maps at
            stride 4.
        sigma: sigma of the Gaussians of the targets, in heatmap cells.
        flip_test: average the maps of each crop and of its mirror image; twice the time, about one AP more.
        score_threshold: keypoints below it do not count in the score of a person.
        oks_threshold: similarity above which two persons of an image are one that a detector found twice; the one with
            the lower score is left out.

    Raises:
        ConfigError: a value out of range, by name.
    """

    channels: tuple[int, ...]
    sigma: float
    flip_test: bool
    score_threshold: float
    oks_threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not 1 <= len(self.channels) <= 5 or min(self.channels) < 1:
            raise ConfigError(f"task.build.head.channels must be one to five widths above 0, got {list(self.channels)}")
        if not self.sigma > 0:
            raise ConfigError(f"task.build.head.sigma must be above 0, got {self.sigma}")

    @property
    def stride(self) -> int:
        """Image pixels per heatmap cell."""
        return TOP_STRIDE >> len(self.channels)


class PoseNetwork(nn.Module):
    """A body and deconvolutions on its last map: normalised crops (B, 3, H, W) to (B, K, H / stride, W / stride)."""

    def __init__(
        self, body: nn.Module, in_channels: int, num_keypoints: int, sizes: PoseHeadSize, layers: Layers
    ) -> None:
        super().__init__()
        self.body = body
        self.deconvolutions = nn.Sequential()
        for width in sizes.channels:
            self.deconvolutions.extend(
                [layers.upsampling_conv(in_channels, width), layers.norm(width), nn.ReLU(inplace=True)]
            )
            in_channels = width
        self.maps = nn.Conv2d(in_channels, num_keypoints, 1)
        for module in (*self.deconvolutions, self.maps):
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised crops (B, 3, H, W) to heatmaps (B, K, H / stride, W / stride)."""
        return self.maps(self.deconvolutions(self.body(images.contiguous(memory_format=torch.channels_last))[-1]))


class PoseTask(Task[PoseBatch, Tensor]):
    """Heatmap regression. In a sandwich, the smaller archs imitate the maps of the largest one.

    `ground_truth` must be set before an evaluation.

    Args:
        settings: `num_classes` is the number of keypoints K.
        head: sizes of the head.
        input_size: (H, W) of the crops, multiples of 32.
        category_id: COCO id of the category, for predictions.
        flip_pairs: indices of left and right keypoints.
        sigmas: (K,) of the object keypoint similarity. A task without data, which only states costs, needs neither
            this nor the two before.

    Raises:
        ConfigError: an input size that is no multiple of 32.
    """

    kind = TaskKind(
        "pose", "Pose estimation", "ap", classes_are="keypoints", model="topdown", score_label="AP",
        macs_part="body", shows_schedule=False,
    )  # fmt: skip
    takes_boxes = True
    input_gene = "input_height"

    def __init__(
        self,
        settings: TaskSettings,
        *,
        head: PoseHeadSize,
        input_size: Sequence[int],
        category_id: int = 1,
        flip_pairs: Sequence[Sequence[int]] = (),
        sigmas: Sequence[float] = (),
    ) -> None:
        if any(side % TOP_STRIDE for side in input_size):
            raise ConfigError(f"data.input_size must be multiples of {TOP_STRIDE} pixels, got {list(input_size)}")
        table, arch = settings.table, settings.arch
        channels = table.feature_channels(table.space.arch_or_largest(arch))[-1]
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        super().__init__(settings, PoseNetwork(build_body(table, arch), channels, settings.num_classes, head, layers))
        self.head = head
        self.crop_size = (int(input_size[0]), int(input_size[1]))
        self.category_id = category_id
        self.flip_pairs = [list(pair) for pair in flip_pairs]
        self.sigmas = list(sigmas)
        self.metric = KeypointMetric(settings.num_classes, category_id, self.sigmas, head.oks_threshold)

    def rebuild(self, settings: TaskSettings) -> Self:
        """The same task with new weights for other settings."""
        return type(self)(
            settings, head=self.head, input_size=self.crop_size, category_id=self.category_id,
            flip_pairs=self.flip_pairs, sigmas=self.sigmas,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 crops (B, 3, H, W) to heatmaps (B, K, H / stride, W / stride)."""
        return self.network(self.normalise(images))

    def losses(
        self, batch: PoseBatch, *, regularise: bool, teacher: Teacher[Tensor] | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Mean squared error of the maps of labelled keypoints, and of a teacher. The network has no dropout."""
        maps = self(batch["images"])
        size = (maps.shape[2], maps.shape[3])
        targets, weights = encode_heatmaps(
            batch["keypoints"], batch["visible"], size, self.head.stride, self.head.sigma
        )
        share = 0.0 if teacher is None else teacher.share
        losses = {}
        if share < 1:
            squares = (maps - targets.to(maps.dtype)).square().mean((2, 3))
            losses["heatmaps"] = (1 - share) * (squares * weights).mean()
        if teacher is not None and share > 0:
            losses["distillation"] = share * (maps - teacher.outputs).square().mean()
        return losses, maps.detach()

    def deployed(self) -> Deployed:
        """``heatmaps`` (B, K, H / stride, W / stride) of crops around persons."""
        return Deployed(DeployedNetwork(self.normalise, self.network), ("heatmaps",))

    def forward_batch(self, batch: PoseBatch) -> Tensor:
        """Heatmaps of an evaluation batch."""
        return self(batch["images"])

    def predict(self, batch: PoseBatch) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (B, K, 2) in the pixel-index frame of the image and their scores (B, K), float64."""
        maps = self(batch["images"])
        if self.head.flip_test:
            maps = (maps + mirror_heatmaps(self(batch["images"].flip(3)), self.flip_pairs)) / 2
        points, scores = decode_heatmaps(maps.float(), self.head.stride, self.head.sigma)
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

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The size of the crops, for every arch."""
        return self.crop_size

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``: the deconvolutions and the last convolution."""
        channels = self.table.feature_channels(arch)[-1]
        return {"head": pose_head_cost(channels, self.crop_size, self.settings.num_classes, self.head)}


def pose_head_cost(in_channels: int, input_size: tuple[int, int], num_keypoints: int, sizes: PoseHeadSize) -> Cost:
    """The cost of the head for one crop. A deconvolution multiplies each input pixel by all weights of its kernel."""
    size = input_size
    for _ in range(5):
        size = strided_size(size, 2)
    modules = []
    for number, width in enumerate(sizes.channels):
        weights = in_channels * width * DECONVOLUTION_KERNEL**2
        modules.append(ModuleCost(f"deconv_{number}", weights * size[0] * size[1], weights + 2 * width))
        size = (2 * size[0], 2 * size[1])
        in_channels = width
    modules.append(convolution_cost("maps", in_channels, num_keypoints, 1, size, bias=True))
    return Cost(tuple(modules))
