"""Top-down pose estimation: a crop to one heatmap a keypoint (Xiao et al. 2018), scored by COCO's AP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nas_transfer.data.drawing import Picture, draw_persons
from nas_transfer.data.module import Vocabulary
from nas_transfer.errors import ConfigError
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.supernet.cost import Cost, ModuleCost, convolution_cost, strided_size
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.base import Batch, Task, TaskSettings
from nas_transfer.tasks.coco_metrics import CocoResult, evaluate_coco
from nas_transfer.tasks.deployment import Deployed, DeployedNetwork
from nas_transfer.tasks.heatmaps import decode_heatmaps, encode_heatmaps, mirror_heatmaps, suppress_duplicates
from nas_transfer.tasks.prediction import Prediction

TOP_STRIDE = 32
DECONVOLUTION_KERNEL = 4


@dataclass(frozen=True)
class PoseHeadSize:
    """The sizes of the heatmap head.

    Args:
        channels: of each deconvolution, which doubles height and width; three of 256 in the paper: maps at stride 4.
        sigma: of the targets' Gaussians, in heatmap cells.
        flip_test: average the maps of each crop and of its mirror image; twice the time, about one AP more.
        score_threshold: keypoints below it do not count in a person's score.
        oks_threshold: of two persons of an image with a higher similarity one is dropped (duplicates of a detector).

    Raises:
        ConfigError: naming the value.
    """

    channels: tuple[int, ...]
    sigma: float
    flip_test: bool
    score_threshold: float
    oks_threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if not 1 <= len(self.channels) <= 5 or min(self.channels) < 1:
            raise ConfigError(f"expected head.channels of one to five deconvolutions, got {list(self.channels)}")
        if not self.sigma > 0:
            raise ConfigError(f"expected head.sigma above 0, got {self.sigma}")

    @property
    def stride(self) -> int:
        """Image pixels a heatmap cell."""
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
        """Heatmaps."""
        return self.maps(self.deconvolutions(self.body(images.contiguous(memory_format=torch.channels_last))[-1]))


class PoseTask(Task):
    """Heatmap regression; in a sandwich the smaller archs imitate the largest one's maps.

    Args:
        settings: `num_classes` is the number of keypoints K.
        head: sizes of the head.
        input_size: (H, W) of the crops, multiples of 32.
        category_id: COCO id of the category, for predictions.
        flip_pairs: indices of left and right twins.
        sigmas: (K,) of the object keypoint similarity. A task without data, for costs, needs none of these three.

    `ground_truth` must be set before an evaluation to the annotations of the split that is evaluated.

    Raises:
        ConfigError: an input size that the body's last map does not divide.
    """

    score_key = "ap"
    classes_are = "keypoints"

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
            raise ConfigError(f"expected data.input_size in multiples of {TOP_STRIDE} pixels, got {list(input_size)}")
        table, arch = settings.table, settings.arch
        channels = table.feature_channels(table.space.arch_or_largest(arch))[-1]
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        super().__init__(settings, PoseNetwork(build_body(table, arch), channels, settings.num_classes, head, layers))
        self.head = head
        self.crop_size = (int(input_size[0]), int(input_size[1]))
        self.category_id = category_id
        self.flip_pairs = [list(pair) for pair in flip_pairs]
        self.sigmas = list(sigmas)
        self._pending: dict[int, dict[str, Any]] = {}

    def rebuild(self, settings: TaskSettings) -> PoseTask:
        """The same task with new weights for other settings."""
        return PoseTask(
            settings, head=self.head, input_size=self.crop_size, category_id=self.category_id,
            flip_pairs=self.flip_pairs, sigmas=self.sigmas,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 crops (B, 3, H, W) to heatmaps (B, K, H / stride, W / stride)."""
        return self.network(self.normalise(images))

    def losses(self, batch: Batch, teacher: Any) -> tuple[dict[str, Tensor], Any]:
        """Mean squared error over the labelled keypoints' maps, and with a teacher that against its maps."""
        maps = self(batch["images"])
        size = (maps.shape[2], maps.shape[3])
        targets, weights = encode_heatmaps(
            batch["keypoints"], batch["visible"], size, self.head.stride, self.head.sigma
        )
        share = 0.0 if teacher is None else self.sampling.distillation
        losses = {}
        if share < 1:
            squares = (maps - targets.to(maps.dtype)).square().mean((2, 3))
            losses["heatmaps"] = (1 - share) * (squares * weights).mean()
        if share > 0:
            losses["distillation"] = share * (maps - teacher).square().mean()
        return losses, maps.detach()

    def deployed(self) -> Deployed:
        """``heatmaps`` (B, K, H / stride, W / stride) of crops around persons."""
        return Deployed(DeployedNetwork(self.normalise, self.network), ("heatmaps",))

    def forward_batch(self, batch: Batch) -> Tensor:
        """Heatmaps of an evaluation batch."""
        return self(batch["images"])

    def predict(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (B, K, 2) in the image's pixel-index frame and their scores (B, K), float64."""
        maps = self(batch["images"])
        if self.head.flip_test:
            maps = (maps + mirror_heatmaps(self(batch["images"].flip(3)), self.flip_pairs)) / 2
        points, scores = decode_heatmaps(maps.float(), self.head.stride, self.head.sigma)
        to_image = batch["to_image"].double()
        moved = torch.einsum("bij,bkj->bki", to_image[:, :, :2], points.double()) + to_image[:, None, :, 2]
        return moved.cpu().numpy(), scores.double().cpu().numpy()

    def predict_image(self, batch: Batch, image_id: int, vocabulary: Vocabulary) -> Prediction:
        """Persons without duplicates in ``predictions.json``."""
        persons = self._results(self._persons(batch | {"image_ids": torch.full_like(batch["image_ids"], image_id)}))

        def draw(image: Tensor, threshold: float, side: int) -> Picture:
            rows = [torch.tensor(person["keypoints"]).reshape(-1, 3) for person in persons]
            sure = [(row[:, 2] >= threshold).tolist() for row in rows]
            points = [row[:, :2] for row in rows]
            return draw_persons(image, points, sure, vocabulary.edges, vocabulary.flip_pairs, side)

        return Prediction({"predictions.json": persons}, draw)

    def update_metrics(self, batch: Batch) -> None:
        """Predict a batch and keep the keypoints by sample, so that a sample that two ranks see counts once."""
        self._pending |= self._persons(batch)

    def _persons(self, batch: Batch) -> dict[int, dict[str, Any]]:
        """The keypoints of a batch's persons by sample id."""
        points, scores = self.predict(batch)
        rows = zip(
            batch["sample_ids"].tolist(), batch["image_ids"].tolist(), batch["areas"].tolist(),
            batch["box_scores"].tolist(), points, scores, strict=True,
        )  # fmt: skip
        return {
            sample_id: {
                "image_id": image_id, "area": area, "score": box_score * self._certainty(own_scores),
                "points": own_points, "scores": own_scores,
            }
            for sample_id, image_id, area, box_score, own_points, own_scores in rows
        }  # fmt: skip

    def _certainty(self, scores: np.ndarray) -> float:
        """The mean score of the keypoints above the threshold, 0 without any."""
        sure = scores[scores > self.head.score_threshold]
        return float(sure.mean()) if len(sure) else 0.0

    def compute_metrics(self) -> dict[str, float]:
        """COCO's average precisions and recalls by OKS, ``ap`` first; resets them."""
        persons = self._pending
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, persons)
            persons = {sample_id: person for part in parts for sample_id, person in part.items()}
        self._pending = {}
        results = self._results(persons)
        self.predictions = {"predictions": results}
        image_ids = self.require_ground_truth().getImgIds()
        return evaluate_coco(self.require_ground_truth(), results, image_ids, "keypoints", self.sigmas)

    def _results(self, persons: dict[int, dict[str, Any]]) -> list[CocoResult]:
        """Persons in COCO's result format, without duplicates."""
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for sample_id in sorted(persons):
            by_image[persons[sample_id]["image_id"]].append(persons[sample_id])
        results = []
        for image_id, own in by_image.items():
            points = np.stack([person["points"] for person in own])
            areas, scores = (np.asarray([person[key] for person in own]) for key in ("area", "score"))
            kept = suppress_duplicates(points, areas, scores, np.asarray(self.sigmas), self.head.oks_threshold)
            for index in kept:
                rows = np.concatenate([points[index], own[index]["scores"][:, None]], 1)
                results.append(
                    {
                        "image_id": image_id, "category_id": self.category_id,
                        "keypoints": rows.flatten().tolist(), "score": float(scores[index]),
                    }
                )  # fmt: skip
        return results

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """The crops' size, for every arch."""
        return self.crop_size

    def head_costs(self, arch: Arch) -> dict[str, Cost]:
        """``head``: the deconvolutions and the last convolution."""
        channels = self.table.feature_channels(arch)[-1]
        return {"head": pose_head_cost(channels, self.crop_size, self.settings.num_classes, self.head)}


def pose_head_cost(in_channels: int, input_size: tuple[int, int], num_keypoints: int, sizes: PoseHeadSize) -> Cost:
    """What the head costs for one crop: a deconvolution multiplies each input pixel by all of its kernel's weights."""
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
