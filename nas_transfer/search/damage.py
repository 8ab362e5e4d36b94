"""Additive scores: the damage of an arch is the sum of the damages of its choices, each measured alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.errors import ArchError, ConfigError, RunError
from nas_transfer.runs import DamageTable
from nas_transfer.space import SearchSpace

Array: TypeAlias = npt.NDArray[np.float64]
Measure: TypeAlias = Literal["outputs", "features"]


class ArchDamage:
    """Maps archs to their damages. The largest arch has none, and a gene without effect or without a damage adds none.

    Args:
        space: the space of the archs.
        table: the damages of its choices.
        measure: which of them are added up.

    Raises:
        RunError: the table is of another space, or has a choice that the space does not have.
    """

    def __init__(self, space: SearchSpace, table: DamageTable, measure: Measure = "outputs") -> None:
        if table.space != space.name:
            raise RunError(f"the damages must be of space '{space.name}', got those of space '{table.space}'")
        self.space = space
        self._damages: dict[str, dict[int, float]] = {}
        for choice in table.choices:
            try:
                space.with_value(space.largest(), choice.gene, choice.value)
            except ArchError as error:
                raise RunError(f"the damages do not fit the space: {error}") from error
            self._damages.setdefault(choice.gene, {})[choice.value] = (
                choice.outputs if measure == "outputs" else choice.features
            )
        for gene in space.genes:
            self._damages.get(gene.name, {})[gene.choices[-1]] = 0.0

    def __call__(self, archs: Sequence[Arch]) -> Array:
        """The damages (N,).

        Raises:
            ConfigError: an arch has a choice whose damage was not measured.
        """
        return np.asarray([self._of(arch) for arch in archs], dtype=np.float64)

    def _of(self, arch: Arch) -> float:
        total = 0.0
        for gene, value in zip(self.space.genes, arch.values, strict=True):
            known = self._damages.get(gene.name)
            if known is None or not self.space.is_active(arch, gene):
                continue
            if value not in known:
                raise ConfigError(
                    f"the damage of {gene.name}={value} was not measured, only those of {sorted(known)}: "
                    "measure the table again"
                )
            total += known[value]
        return total


@dataclass(frozen=True)
class AdditiveScore:
    """A line through the point of the whole network: score = `whole` - `factor` x damage.

    Attributes:
        whole: score of the whole network.
        factor: at least 0.
    """

    whole: float
    factor: float

    def __call__(self, damages: Array) -> Array:
        """The estimated scores (N,)."""
        return self.whole - self.factor * damages


def fit_additive(damages: Array, scores: Array) -> AdditiveScore:
    """The least-squares line through the mean score of the archs without damage.

    Where all archs have damage, the score at no damage is fitted too.

    Args:
        damages, scores: (N,), N at least 1.
    """
    spared = damages == 0
    if spared.any():
        whole = float(scores[spared].mean())
        return AdditiveScore(whole, max(0.0, _ratio(damages @ (whole - scores), damages @ damages)))
    centred = damages - damages.mean()
    factor = max(0.0, -_ratio(centred @ (scores - scores.mean()), centred @ centred))
    return AdditiveScore(float(scores.mean() + factor * damages.mean()), factor)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0
