"""The study: an Optuna study on disk. One process writes it, and an interrupted search resumes from it.

`nas_transfer.search.shared_study` holds the study that several workers write.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError, NasTransferError, RunError
from nas_transfer.runs import Direction, Outcome, Trial, files
from nas_transfer.runs.reading import is_present
from nas_transfer.search.front import front_of
from nas_transfer.search.samplers.base import arch_of, ask
from nas_transfer.space import SearchSpace

logger = logging.getLogger(__name__)

STUDY_NAME = "search"
REASON = "reason"
"""User attribute that holds why a trial failed or was left out."""
SCORED = "scored"
"""User attribute of a trial that lost its race: the share of the search split that was scored."""


@dataclass(frozen=True)
class Raced:
    """What racing did in a search.

    Attributes:
        dropped: trials that lost their race.
        saved: the share of images that were not scored, of those of all scored trials.
    """

    dropped: int
    saved: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.dropped} trials lost their race, which saved {100 * self.saved:.1f} % of the images to score"


class Study:
    """An Optuna study over the archs of a space. It is created, or loaded if it exists.

    Args:
        folder: run folder of the search.
        storage: an Optuna RDB URL; None for a journal file in `folder`.
        space: the space of the archs.
        directions: ``maximize`` or ``minimize`` by the name of an objective, in order.
        sampler: the sampler that proposes archs.

    Raises:
        ConfigError: there is no objective, a direction is invalid, or the storage cannot be opened.
    """

    def __init__(
        self, folder: Path, storage: str | None, space: SearchSpace, directions: Mapping[str, Direction],
        sampler: BaseSampler,
    ) -> None:  # fmt: skip
        if not directions:
            raise ConfigError("a search needs at least one objective, got none: add objective=[score,macs]")
        for name, direction in directions.items():
            if direction not in ("maximize", "minimize"):
                raise ConfigError(f"the direction of objective {name} must be maximize or minimize, got {direction!r}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.directions = dict(directions)
        with _readable(folder / files.STUDY) if storage is None else nullcontext():
            self._storage = self._open(folder, storage)
            self._study = optuna.create_study(
                study_name=STUDY_NAME if storage is None else f"{STUDY_NAME}-{folder.name}",
                storage=self._storage,
                directions=[StudyDirection[direction.upper()] for direction in directions.values()],
                sampler=sampler,
                load_if_exists=True,
            )
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        if self._study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental in Optuna; only its dashboard shows them
                self._study.set_metric_names(list(directions))

    def _open(self, folder: Path, storage: str | None) -> optuna.storages.BaseStorage:
        return _journal(folder / files.STUDY) if storage is None else _database(storage)

    def __len__(self) -> int:
        return len(self._numbered())

    def _numbered(self) -> list[tuple[int, optuna.trial.FrozenTrial]]:
        """The trials with the numbers that files and reports use, in this order."""
        return [(trial.number, trial) for trial in self._trials()]

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def ask(self) -> tuple[int, Arch]:
        """Ask for a trial; returns its number and its arch."""
        trial = ask(self._study, self.space)
        return trial.number, arch_of(self.space, trial.params)

    def open_trials(self) -> list[tuple[int, Arch]]:
        """Numbers and archs of the trials that were asked and not told yet.

        If the process ended while it asked for a trial, its missing genes are set now.
        """
        open_trials = []
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            if set(trial.params) == set(self.space.names):
                open_trials.append((trial.number, arch_of(self.space, trial.params)))
            else:
                self._finish_asking(trial)
                open_trials.append((trial.number, arch_of(self.space, self._trials()[trial.number].params)))
        return open_trials

    def _key(self, number: int) -> int:
        """The key in the storage of the trial that has this number in Optuna."""
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _finish_asking(self, trial: optuna.trial.FrozenTrial) -> None:
        sampler = self._study.sampler
        space = sampler.infer_relative_search_space(self._study, trial)
        params = sampler.sample_relative(self._study, trial, space)
        for name, distribution in space.items():
            if name not in trial.params:
                internal = distribution.to_internal_repr(params[name])
                self._storage.set_trial_param(self._key(trial.number), name, internal, distribution)

    def tell(self, outcome: Outcome) -> None:
        """Finish a trial with its outcome. A trial with a value that is not finite fails and gets no score."""
        final = self._final(outcome)
        for name, value in attributes_of(final).items():
            self._storage.set_trial_user_attr(self._key(outcome.trial), name, value)
        state, values = self._state(final)
        self._study.tell(outcome.trial, values, state)

    def _final(self, outcome: Outcome) -> Outcome:
        """The outcome as it is told: failed if a value is missing or not finite."""
        values = [outcome.values.get(name, math.nan) for name in self.directions]
        if outcome.reason is not None or all(math.isfinite(value) for value in values):
            return outcome
        return replace(outcome, reason=f"all values must be finite numbers, got {dict(outcome.values)}", values={})

    def _state(self, final: Outcome) -> tuple[TrialState, list[float] | None]:
        """Optuna's state of a trial with this outcome, and its values."""
        if final.reason is not None:
            return TrialState.PRUNED if final.left_out else TrialState.FAIL, None
        return TrialState.COMPLETE, [final.values[name] for name in self.directions]

    def told(self) -> list[Trial]:
        """All trials that were told values, in the order of their numbers."""
        return [
            Trial(
                number,
                arch_of(self.space, trial.params).to_dict(),
                dict(zip(self.directions, trial.values, strict=True)),
                trial.user_attrs.get("metrics", {}),
            )
            for number, trial in self._numbered()
            if trial.state == TrialState.COMPLETE
        ]

    def front(self) -> list[int]:
        """The numbers of the trials of the current front."""
        return sorted(trial.number for trial in front_of(self.told(), self.directions).trials)

    def raced(self) -> Raced:
        """How many trials lost their race, and what that saved."""
        dropped = [float(trial.user_attrs[SCORED]) for trial in self._finished() if SCORED in trial.user_attrs]
        whole = sum(trial.state == TrialState.COMPLETE for trial in self._finished())
        return Raced(len(dropped), sum(1 - share for share in dropped) / max(1, len(dropped) + whole))

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for _, trial in self._numbered() if trial.state.is_finished()]

    def finished(self) -> set[int]:
        """The numbers of the trials that were told, with values or without."""
        return {number for number, trial in self._numbered() if trial.state.is_finished()}

    def num_finished(self, archs: Collection[Arch]) -> int:
        """How many of these archs have a finished trial."""
        wanted, names = {arch.values for arch in archs}, self.space.names
        if not wanted:
            return 0
        finished = (tuple(int(trial.params[name]) for name in names) for trial in self._finished())
        return len(wanted.intersection(finished))

    def failures(self) -> list[tuple[int, str]]:
        """Numbers and reasons of failed trials."""
        return [
            (number, str(trial.user_attrs.get(REASON, "")))
            for number, trial in self._numbered()
            if trial.state == TrialState.FAIL
        ]

    def seconds(self, *, accelerator: bool = False) -> float:
        """Seconds that the evaluation of all finished trials took, or only of those on an accelerator."""
        finished = [trial.user_attrs for trial in self._finished()]
        return sum(
            float(attrs.get("seconds", 0.0))
            for attrs in finished
            if not accelerator or attrs.get("device", "cpu") != "cpu"
        )

    def images(self) -> int:
        """Number of training images of all finished trials."""
        return sum(int(trial.user_attrs.get("images", 0)) for trial in self._finished())

    def training_macs(self) -> int:
        """Multiply-accumulates of the training of all finished trials."""
        return sum(int(trial.user_attrs.get("training_macs", 0)) for trial in self._finished())

    def num_left_out(self) -> int:
        """Number of trials that broke a limit, or were dropped between rungs or in a race: they have no values."""
        return sum(trial.state == TrialState.PRUNED for trial in self._finished())

    def failures_in_a_row(self) -> int:
        """How many finished trials have failed since the last one that did not."""
        count = 0
        for _, trial in reversed(self._numbered()):
            if trial.state.is_finished() and trial.state != TrialState.FAIL:
                break
            count += trial.state == TrialState.FAIL
        return count


def attributes_of(outcome: Outcome) -> dict[str, object]:
    """What a trial keeps of its outcome beside the values, by user attribute."""
    attributes: dict[str, object] = {
        "metrics": {name: value for name, value in outcome.metrics.items() if math.isfinite(value)},
        "seconds": outcome.seconds,
        "device": outcome.device,
        "images": outcome.images,
        "training_macs": outcome.training_macs,
    }
    if outcome.scored < 1:
        attributes[SCORED] = outcome.scored
    return attributes if outcome.reason is None else attributes | {REASON: outcome.reason}


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    # With the run folder locked, a lock file can only be left from a killed process. Optuna would wait for it for 30 s.
    Path(f"{path}.lock").unlink(missing_ok=True)
    if is_present(path):
        _keep_sound_lines(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _keep_sound_lines(path: Path) -> None:
    """Cut a journal before its first damaged line, which would spoil all later ones. Trials after it are told again."""
    content = path.read_bytes()
    sound = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or not _is_entry(line):
            break
        sound += len(line)
    if b"\n" in content[sound:]:
        logger.warning("%s is damaged after %d of %d bytes: the rest is made again", path, sound, len(content))
    if sound < len(content):
        os.truncate(path, sound)


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what Optuna raises for a journal of other content into one sentence."""
    try:
        yield
    except (NasTransferError, OSError):
        raise
    except Exception as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}: {' '.join(str(error).split())}): delete it and repeat the "
            f"command, which makes it again from {path.parent / files.TRIALS_FOLDER}"
        ) from error


def _database(url: str) -> optuna.storages.BaseStorage:
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # of SQLAlchemy, or a missing driver
        raise ConfigError(f"search.storage must be the URL of a database, cannot open {url}: {error}") from error
