"""Metadata of a kind of task."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TaskKind:
    """A kind of task: its name in files, its score, and how a report tabulates its networks.

    Attributes:
        name: identifies the kind in weights and results, such as ``detection``. Weights of neck and head fit a task of
            the same name only.
        title: the kind in words, such as ``Object detection``.
        score_key: the metric that searches maximise, a fraction in 0-1.
        classes_are: what `num_classes` counts.
        model: the network around the body, such as ``faster_rcnn``.
        score_label: column heading of the score; `score_key` by default.
        macs_part: the part of a network whose MACs are quoted, ``total`` for the sum of all parts.
        size_label: column heading of the input size; None for no such column.
        shows_schedule: whether the length of the training is tabulated.
    """

    name: str
    title: str
    score_key: str
    classes_are: str = "classes"
    model: str = "net"
    score_label: str = ""
    macs_part: str = "total"
    size_label: str | None = "Input Size"
    shows_schedule: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "score_label", self.score_label or self.score_key)

    def with_model(self, model: str) -> TaskKind:
        """The same kind of task with another network around the body, whose weights of neck and head are its own."""
        return self if model == self.model else replace(self, name=f"{self.name}_{model}", model=model)

    @property
    def family(self) -> TaskKind:
        """What the kinds of a task with several models share, so that their networks stand in one table."""
        return replace(self, name="", model="")
