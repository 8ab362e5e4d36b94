"""``damage.json``: what each single choice of an arch does to one trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.reading import read_record, write_record

DAMAGE_FORMAT = 1


@dataclass(frozen=True)
class ChoiceDamage:
    """The damage of one choice.

    Attributes:
        gene, value: the choice; all other genes have their largest.
        features: squared error of the feature maps that neck and head read, relative to their variance.
        outputs: the same of the outputs of the network.
        seconds: how long it took to measure.
    """

    gene: str
    value: int
    features: float
    outputs: float
    seconds: float = 0.0


@dataclass(frozen=True)
class DamageTable:
    """The damages of all choices of a space below the largest.

    Attributes:
        space: name of the space.
        choices: the choices with their damages.
        weights_sha256: hash of the file of the trained network.
        repair_views: training images, as configured, from which the changed blocks were repaired.
        seed: that drew them.
        seconds: how long the table took to make, with the preparation of the repair.
        device: kind of device: ``cpu`` or ``cuda``.
    """

    space: str
    choices: tuple[ChoiceDamage, ...]
    weights_sha256: str
    repair_views: int
    seed: int
    seconds: float
    device: str = "cpu"

    def write(self, folder: Path) -> None:
        """Write ``damage.json`` into a run folder."""
        write_record(folder / files.DAMAGE, self, DAMAGE_FORMAT)


def read_damage(folder: Path) -> DamageTable | None:
    """Read ``damage.json``, None if there is none; RunError if it cannot be used."""
    path = folder / files.DAMAGE
    return read_record(path, DamageTable, DAMAGE_FORMAT) if path.is_file() else None
