"""The keys of stages that use a network without training it."""

# No `from __future__ import annotations`: the reader needs the fields' types themselves, not their source text.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas_transfer.ranges import Amount, Count, Positive, Share
from nas_transfer.stages.config.base import (
    DATA_FILLS,
    NO_WEIGHTS,
    DataRunConfig,
    RunConfig,
    StageConfig,
    TaskConfig,
    TaskRunConfig,
    TrainerConfig,
)
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import key

if TYPE_CHECKING:
    from nas_transfer.data.module import DownstreamData
    from nas_transfer.supernet.protocol import SupernetTable

LEAST_TIMED = 4
WITHOUT_ROOT: Mapping[str, object] = {**DATA_FILLS, "root": "."}
"""The same, until the configuration of the run that is used says where its data are."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(TaskRunConfig):
    """The keys of ``stage=profile``.

    Attributes:
        preview: number of training samples to draw; `data` is read only for them.
        latency: number of random archs whose blocks are timed.
    """

    preview: Count = key()
    latency: Count = key()
    data: Factory["DownstreamData"] | None = key(
        only_with=("preview",), uncounted=("num_workers", "cache_mib"), fills=DATA_FILLS
    )
    seed: Count = key(counts_with=("preview", "latency"))

    def faults(self) -> Iterator[str]:
        """Report a number of archs that is too small."""
        if 0 < self.latency < LEAST_TIMED:
            yield f"latency must be 0 or at least {LEAST_TIMED} archs, got {self.latency}"


@dataclass(frozen=True, kw_only=True)
class ExportStageConfig(StageConfig):
    """``stage`` of an export: further files, and the largest allowed differences between an engine and torch.

    Attributes:
        max_difference: between outputs, as a share of the largest output.
        max_unmatched: for a detector, the share of detections without a match.
        max_score_difference: between the scores on the validation split; one image of the split is allowed in any case.
        compared_images: number of images of that split on which outputs are compared.
        int8: whether the network is written in 8-bit integers, too.
        int8_images: number of images of train on which the ranges of its activations are measured.
        max_int8_loss: by how much its score may be lower.
        openvino: whether the network is written in OpenVINO's format, too.
        latency_rounds: rounds in which the engines are timed in turn.
    """

    max_difference: Amount = key()
    max_unmatched: Share = key()
    max_score_difference: Share = key()
    compared_images: Positive = key()
    int8: bool = key()
    int8_images: Positive = key(counts_with=("int8",))
    max_int8_loss: Share = key(counts_with=("int8",))
    openvino: bool = key()
    latency_rounds: Positive = key(identity=False)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(DataRunConfig):
    """The keys of ``stage=export``."""

    stage: ExportStageConfig = key()
    data: Factory["DownstreamData"] = key(uncounted=("num_workers", "cache_mib"), fills=WITHOUT_ROOT)
    weights: str = key(null=NO_WEIGHTS)
    trainer: TrainerConfig = key(identity=False)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(DataRunConfig):
    """The keys of ``stage=predict``. Keys of the trained run's configuration are not part of the run's identity.

    Attributes:
        images: a file, a folder, a pattern, a video or the index of a camera.
        frame_step: of a video or a camera, every such frame is read.
        max_frames: of a video or a camera, the number of frames; None for all of a video.
        score_threshold: lowest score that is drawn.
        boxes: a file with boxes of persons, for pose.
    """

    supernet: Factory["SupernetTable"] = key(identity=False)
    task: TaskConfig = key(identity=False)
    data: Factory["DownstreamData"] = key(identity=False, fills=WITHOUT_ROOT)
    trainer: TrainerConfig = key(identity=False)
    seed: Count = key(identity=False)
    weights: str = key(null=NO_WEIGHTS)
    images: str | Count = key()
    frame_step: Positive = key()
    max_frames: Positive | None = key()
    score_threshold: Share = key()
    boxes: str | None = key()


@dataclass(frozen=True, kw_only=True)
class ReportConfig(RunConfig):
    """The keys of ``stage=report``.

    Attributes:
        runs_in: folders and patterns.
    """

    runs_in: str | tuple[str, ...] | None = key()

    def faults(self) -> Iterator[str]:
        """Report an empty list of folders."""
        if self.runs_in is not None and not self.patterns:
            yield "runs_in must name folders and patterns such as '[runs/search/*/*, runs/finetune/*/*]', got none"

    @property
    def patterns(self) -> list[str]:
        """The folders and patterns; all below `runs` by default."""
        given = self.runs if self.runs_in is None else self.runs_in
        return [pattern for pattern in ([given] if isinstance(given, str) else given) if pattern]
