"""``analysis.json``: what a network is good at, from the images that its score was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.reading import is_present, read_record, write_record

ANALYSIS_FORMAT = 1
BACKGROUND = "background"
"""The last row and column of the confusion matrix of a detector: what is not annotated, and what is not found."""


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class or keypoint.

    Attributes:
        name: its name.
        count: annotated objects, images, pixels or keypoints of it.
        scores: fractions by name; those that are undefined without annotations are left out.
    """

    name: str
    count: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision over recall, as COCO interpolates it: the highest precision at this or any higher recall.

    Attributes:
        recalls: (R,) ascending.
        precision: (R,) of each class, in the order of `Analysis.classes`, or of persons alone for keypoints; empty for
            a class without annotations.
        mean: (R,) over the classes with annotations.

    Raises:
        ValueError: a curve has another length.
    """

    recalls: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]

    def __post_init__(self) -> None:
        if {len(self.mean), *map(len, self.precision)} - {0, len(self.recalls)} or not self.mean:
            raise ValueError(f"curves of precision must have {len(self.recalls)} values, one for each recall")


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 of the predictions that score at least a threshold, over all classes together.

    Attributes:
        thresholds: (T,) ascending, up to the highest score of a prediction.
        precision, recall, f1: (T,).
        recommended: the threshold with the highest F1.

    Raises:
        ValueError: no threshold, or a curve has another length.
    """

    thresholds: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    recommended: float

    def __post_init__(self) -> None:
        lengths = {len(self.precision), len(self.recall), len(self.f1)}
        if not self.thresholds or lengths != {len(self.thresholds)}:
            raise ValueError(
                f"precision, recall and f1 must have {len(self.thresholds)} values, one for each threshold"
            )


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each class was taken for each.

    Attributes:
        names: N names of classes; of a detector, `BACKGROUND` comes last.
        counts: (N, N) images, pixels or objects: the annotated class in rows, the predicted one in columns.

    Raises:
        ValueError: the matrix is not as large as there are names.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if {len(self.names)} != {len(self.counts), *map(len, self.counts)}:
            raise ValueError(f"counts must be {len(self.names)} x {len(self.names)}, one for each pair of names")

    @property
    def shares(self) -> tuple[tuple[float, ...], ...]:
        """(N, N) shares of what is annotated as a class; in the row of the background, of what is predicted as one."""
        predicted = [sum(column) for column in zip(*self.counts)]
        return tuple(
            tuple(
                count / max(1, predicted[place] if name == BACKGROUND else sum(row)) for place, count in enumerate(row)
            )
            for name, row in zip(self.names, self.counts, strict=True)
        )


@dataclass(frozen=True)
class ImageScore:
    """A badly predicted image.

    Attributes:
        image_id: id of the image; of a dataset without ids, its position in the validation split.
        file: its path in the dataset.
        value: what the images are ordered by.
        text: what is wrong with it.
    """

    image_id: int
    file: str
    value: float
    text: str


@dataclass(frozen=True)
class Analysis:
    """What a network is good at.

    Attributes:
        images: number of evaluated images.
        counted: what `ClassScores.count` counts: ``objects``, ``images``, ``pixels``, ``keypoints``.
        classes_are: what a row of `classes` is: ``class``, ``keypoint``.
        classes: scores of each class.
        matched: when a prediction counts as right, for the two curves; empty without them.
        precision_recall, threshold: for tasks whose predictions have scores.
        confusion: of tasks with classes.
        worst: the worst images, the worst first.
        worst_by: what they are ordered by.
    """

    images: int
    counted: str
    classes_are: str
    classes: tuple[ClassScores, ...]
    matched: str = ""
    precision_recall: PrecisionRecall | None = None
    threshold: ThresholdCurve | None = None
    confusion: ConfusionMatrix | None = None
    worst: tuple[ImageScore, ...] = ()
    worst_by: str = ""

    def write(self, folder: Path) -> None:
        """Write ``analysis.json`` into a run folder."""
        write_record(folder / files.ANALYSIS, self, ANALYSIS_FORMAT)


def read_analysis(folder: Path) -> Analysis | None:
    """Read ``analysis.json``, None if there is none; RunError if it cannot be used."""
    path = folder / files.ANALYSIS
    return read_record(path, Analysis, ANALYSIS_FORMAT) if is_present(path) else None
