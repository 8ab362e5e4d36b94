"""The network of a finished run, for predictions from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nas_transfer.api.running import Run, composed, run
from nas_transfer.data.drawing import overlay_side, with_legend
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.samples import ScoredBox
from nas_transfer.errors import ConfigError, DataError, RunError
from nas_transfer.runs import ArchContent, Costs, files
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.common.results import cost_report
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import trained_config, with_trained_groups
from nas_transfer.tasks.prediction import Prediction, Row
from nas_transfer.tasks.task import Task

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
"""A path, a PIL image, an array uint8 (H, W, 3), or a tensor uint8 (3, H, W); all RGB."""


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image.

    Attributes:
        image: uint8 (3, H, W), as it was predicted.
        prediction: prediction of the task.
    """

    image: Tensor
    prediction: Prediction

    @property
    def rows(self) -> list[Row]:
        """The predictions as plain dicts: COCO's result format, or the likeliest classes with their scores."""
        return [row for rows in self.prediction.rows.values() for row in rows]

    @property
    def label_ids(self) -> np.ndarray | None:
        """The class of each pixel as an id of the label files, uint8 (H, W); None for other tasks."""
        return self.prediction.label_ids

    def draw(self, score_threshold: float = 0.5) -> Image.Image:
        """The image with all predictions that score at least a threshold in 0-1."""
        return with_legend(self.prediction.draw(self.image, score_threshold, overlay_side(self.image)))


class Network:
    """The network of a finished run; see `load`.

    Attributes:
        folder: folder of the run.
        task: the torch module and all that belongs to it: losses, metrics, costs.
        class_names: names of the classes, or of the keypoints.
    """

    def __init__(
        self, folder: Path, task: Task, data: DownstreamData, arch_name: str, trust: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.task = task
        self.class_names = data.vocabulary.names
        self._data = data
        self._arch_name = arch_name
        self._trust = tuple(trust)

    @property
    def arch(self) -> ArchContent:
        """The arch as a plain dict, as in arch files."""
        return self.task.require_subnet().to_dict()

    @property
    def costs(self) -> Costs:
        """MACs and parameters by part, with the input size that they are stated for."""
        return cost_report(self.task, self.task.require_subnet())

    @overload
    def predict(self, images: ImageLike, boxes: Sequence[ScoredBox] | None = None) -> ImagePrediction: ...

    @overload
    def predict(
        self, images: list[ImageLike], boxes: list[Sequence[ScoredBox]] | None = None
    ) -> list[ImagePrediction]: ...

    def predict(
        self,
        images: ImageLike | list[ImageLike],
        boxes: Sequence[ScoredBox] | list[Sequence[ScoredBox]] | None = None,
    ) -> ImagePrediction | list[ImagePrediction]:
        """Predict one image, or each image of a list.

        Args:
            images: a path, a PIL image, an array uint8 (H, W, 3) or a tensor uint8 (3, H, W), all RGB; or a list.
            boxes: for pose, the persons of the image, or of each image of the list: bbox [x, y, width, height] in
                pixels and score. None takes each image for one person.

        Raises:
            DataError: an image that cannot be read, or of another type.
        """
        if not isinstance(images, list):
            return self._predict_one(images, 1, cast("Sequence[ScoredBox] | None", boxes))
        each = [None] * len(images) if boxes is None else cast("list[Sequence[ScoredBox]]", boxes)
        return [
            self._predict_one(image, number, persons)
            for number, (image, persons) in enumerate(zip(images, each, strict=True), start=1)
        ]

    def _predict_one(self, image: ImageLike, number: int, persons: Sequence[ScoredBox] | None) -> ImagePrediction:
        pixels = self._pixels(image)
        height, width = pixels.shape[1:]
        whole: list[ScoredBox] = [{"bbox": [0.0, 0.0, float(width), float(height)], "score": 1.0}]
        batch = self._data.prediction_batch(pixels, whole if persons is None else persons)
        with torch.inference_mode():
            prediction = self.task.predict_image(self.task.on_device(batch), number, self._data.vocabulary)
        return ImagePrediction(pixels, prediction)

    def _pixels(self, image: ImageLike) -> Tensor:
        """An image as evaluation passes it on: uint8 (3, H, W)."""
        if isinstance(image, str | Path):
            return self._data.read(Path(image))
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("RGB"))
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.array(image)).movedim(-1, 0) if image.ndim == 3 else torch.zeros(0)
        if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3):
            raise DataError(
                "an image must be a path, a PIL image, an array uint8 (H, W, 3) or a tensor uint8 (3, H, W)"
            )
        return self._data.fitted(image.contiguous())

    def export(self, folder: str | Path) -> Run:
        """Export the network for other programs: ONNX, torch.export, safetensors and a model card; see stage=export.

        Raises:
            NasTransferError: a package is missing, or an engine differs from torch; nothing is written then.
        """
        overrides = [f"weights='{self.folder}'", f"arch='{self._arch_name}'", f"run_dir='{folder}'"]
        overrides += [f"data.root='{self._data.root}'", f"trust=[{','.join(self._trust)}]"]
        return run("stage=export", *overrides, quiet=True)


def load(
    folder: str | Path,
    *,
    arch: str = "max",
    data_root: str | Path | None = None,
    device: str = "cpu",
    trust: Sequence[str] = (),
) -> Network:
    """The network of a finished run, ready to predict.

    The classes are read from the dataset that the run was trained on.

    Args:
        folder: folder of a finished ``pretrain`` or ``finetune`` run.
        arch: which subnet, where the run trained a supernet: ``max``, ``min``, a name, or the path of an arch file. The
            statistics of its BatchNorms are measured first.
        data_root: where the dataset is now; None for where it was.
        device: for torch, such as ``cuda``.
        trust: modules whose classes the run may use besides those of this program, such as that of a task of your own.

    Raises:
        RunError: the folder is no run's.
        ConfigError: the run names a class that is neither of this program nor of a trusted module.
        NasTransferError: data, weights or an arch that cannot be used.
    """
    if trained_config(str(folder)) is None:
        raise RunError(f"{Path(folder) / files.CONFIG} does not exist: is {folder} the folder of a finished run?")
    cfg = composed(["stage=predict"])
    cfg.weights, cfg.arch, cfg.images, cfg.trust = str(folder), arch, "-", list(trust)
    if data_root is not None:
        cfg.data.root = str(data_root)
    task, data, _ = load_trained(read_config(with_trained_groups(cfg), PredictConfig))
    if task.is_supernet:
        raise ConfigError("load needs one arch of a supernet, got arch='supernet': use max, min, a name or a file")
    return Network(Path(folder), task.to(device).eval(), data, arch, trust)
