"""What to do with a search none of whose nets has been trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from nas_transfer.report.nets import Net, data_root, dataset
from nas_transfer.report.studies import StudyRecord
from nas_transfer.report.texts import NONE, unit_of, value_text
from nas_transfer.runs import Trial, files
from nas_transfer.search.resizing import gains_of


@dataclass(frozen=True)
class Advice:
    """What to do next.

    Attributes:
        title, text: in words.
        command: that does it.
    """

    title: str
    text: str
    command: str


def advice_of(studies: Sequence[StudyRecord], nets: Sequence[Net]) -> list[Advice]:
    """An advice for each finished study of a task and dataset without any trained net."""
    trained = {(net.run.task, data_root(net.run)) for net in nets}
    return [
        _advice(study, study.picked)
        for study in studies
        if study.picked is not None and (study.run.task, data_root(study.run)) not in trained
    ]


def _advice(study: StudyRecord, picked: Trial) -> Advice:
    run, data = study.run, dataset(study.run)
    values = ", ".join(
        f"{unit_of(name, study.score_key)} {value_text(name, value)}" for name, value in picked.values.items()
    )
    gains = " ".join(f"{str(gain)[0].upper()}{str(gain)[1:]}." for gain in gains_of(study.front))
    text = (
        f"No net is trained on this dataset yet. {run.folder.name} picked trial {picked.number}: {values}, on the "
        f"search split. {gains} Scores of a search rank nets; train the picked one to know its score:"
    )
    arguments = ["stage=finetune", f"task={run.task}", f"arch={run.folder / files.PICKED_ARCH}"]
    arguments += [f"data.root={data_root(run)}"] if data_root(run) else []
    network = files.network_folder(run.folder, picked.number)
    arguments += [f"weights={network}"] if network.is_dir() else []
    title = f"{run.task}{'' if data == NONE else f' on {data}'}: train trial {picked.number} of {run.folder.name}"
    return Advice(title, " ".join(text.split()), f"python -m nas_transfer {shlex.join(arguments)}")
