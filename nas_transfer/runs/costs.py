"""The costs of a network, the usage of evaluations, and the files that weights descend from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

ArchContent: TypeAlias = Mapping[str, object]
"""The dict form of an arch: its space's name, and its genes' values by group."""
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Costs:
    """The costs of a network for one image.

    Attributes:
        macs, params: multiply-accumulates and parameters by part (``body``, ``neck``, ``head``) and in ``total``.
        params_checkpoint: parameters including the shortcuts of a public checkpoint that no forward pass uses.
        input_size: (H, W) in pixels for which the costs are stated.
        num_classes: classes for which they are stated; keypoints of a pose task.
        classes_are: what `num_classes` counts.
        latency_ms: measured milliseconds by engine, where they were measured.

    Raises:
        ValueError: macs or params have no total.
    """

    macs: Mapping[str, int]
    params: Mapping[str, int]
    params_checkpoint: int
    input_size: tuple[int, int]
    num_classes: int
    classes_are: str = "classes"
    latency_ms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, parts in (("macs", self.macs), ("params", self.params)):
            if "total" not in parts:
                raise ValueError(f"{name} must have a total, got {', '.join(parts) or 'none'}")

    @property
    def size(self) -> str:
        """The input size as text: height x width."""
        return "x".join(map(str, self.input_size))


@dataclass(frozen=True)
class Usage:
    """Images and time that evaluations used.

    Attributes:
        images: training images, with repetitions.
        seconds: on any device, including failed evaluations.
        gpu_seconds: the part of `seconds` on an accelerator.
        training_macs: multiply-accumulates of all forward and backward passes of the training.
    """

    images: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    training_macs: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.images + other.images,
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            self.training_macs + other.training_macs,
        )


@dataclass(frozen=True)
class Ancestor:
    """A file that weights descend from.

    Attributes:
        file: its path when it was read.
        sha256: hash of its content.
        format: name of its layout.
        licence: licence of public weights; empty for weights that this program trained.
        stage, task: what trained it; empty for public weights.
        config_sha256: hash of that stage's configuration; empty for public weights.
        model: name and tag of the public network; empty where the layout says it all.
        url, paper: where public weights are published, and the arXiv identifier or title of their paper.
        preprocessing: of the images with which public weights were trained, in words.
    """

    file: str
    sha256: str
    format: str
    licence: str = ""
    stage: str = ""
    task: str = ""
    config_sha256: str = ""
    model: str = ""
    url: str = ""
    paper: str = ""
    preprocessing: str = ""

    @property
    def published(self) -> str:
        """Page, paper and preprocessing of public weights, in words; empty for other files."""
        paper = f"arXiv {self.paper}" if self.paper[:1].isdigit() else self.paper
        images = self.preprocessing and f"images: {self.preprocessing}"
        return ", ".join(part for part in (self.url, paper, images) if part)
