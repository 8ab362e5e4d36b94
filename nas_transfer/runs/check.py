"""``check.json``: the content of a dataset, what is wrong with it, and how long training on it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from nas_transfer.runs import files
from nas_transfer.runs.reading import read_record, write_record

CHECK_FORMAT = 1


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, the part of the dataset, the file or class, and a sentence."""

    kind: str
    part: str
    name: str
    text: str


class ClassSummary(TypedDict):
    """Images with a class, and how often it is there in all."""

    images: int
    count: int


class LabelSummary(ClassSummary, total=False):
    """Also the share of the pixels of label maps."""

    pixel_share: float


class ObjectSummary(TypedDict):
    """The objects of a part; ranges are minimum, median and maximum."""

    count: int
    per_image: list[float] | None
    images_without: int
    small: int
    medium: int
    large: int


class PersonSummary(ObjectSummary, total=False):
    """Also the labelled keypoints of each person."""

    keypoints_per_person: list[float] | None


class ImageSummary(TypedDict):
    """How many images a part has."""

    images: int
    broken: int


class PartSummary(ImageSummary, total=False):
    """A part of a dataset in numbers; what the layout does not have is left out."""

    width: list[float] | None
    height: list[float] | None
    classes: dict[str, LabelSummary]
    objects: PersonSummary
    ignored_share: float
    search_images: int


@dataclass(frozen=True)
class TrainingEstimate:
    """How long a training takes, extrapolated from a few timed steps.

    Attributes:
        device: the device that trained.
        arch: as on the command line.
        batch: images in a step.
        step_seconds: median of the timed steps.
        steps_timed: number of timed steps.
        steps, epochs: length of the whole run.
        hours: duration of the whole run, without scoring.
        peak_memory_gb: peak memory in 10^9 bytes.
    """

    device: str
    arch: str
    batch: int
    step_seconds: float
    steps_timed: int
    steps: int
    epochs: float
    hours: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Check:
    """A validated dataset.

    Attributes:
        task: the task whose needs were checked.
        root: folder of the dataset.
        parts: parts of the dataset, by name.
        counts: findings by kind.
        num_problems: findings that count as problems.
        findings: all of them.
        seconds: duration of reading.
        training: how long training takes, None if it was not timed.
        not_timed: why training was not timed, empty if it was.
        form: what people call the form of the files.
    """

    task: str
    root: str
    parts: Mapping[str, PartSummary]
    counts: Mapping[str, int]
    num_problems: int
    findings: tuple[Finding, ...]
    seconds: float
    training: TrainingEstimate | None = None
    not_timed: str = ""
    form: str = ""

    def write(self, folder: Path) -> None:
        """Write ``check.json`` into a run folder."""
        write_record(folder / files.CHECK, self, CHECK_FORMAT)


def read_check(folder: Path) -> Check:
    """Read ``check.json``; RunError if there is none or it cannot be used."""
    return read_record(folder / files.CHECK, Check, CHECK_FORMAT)
