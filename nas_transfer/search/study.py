"""The study: an Optuna study on disk that one process writes and a killed search goes on from."""

from __future__ import annotations

import fcntl
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Direction, Outcome, Trial, files
from nas_transfer.search.samplers.base import arch_of, ask
from nas_transfer.space import Arch, SearchSpace

STUDY_NAME = "search"
REASON = "reason"
"""User attribute of a trial that failed or was left out: why."""


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Hold the right to write the study in `folder`; the operating system frees it when the process ends, however.

    Raises:
        RunError: another process holds it.
    """
    with (folder / files.STUDY_LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"expected no other process to run the search in {folder}, got one: "
                "wait for it, or choose another name=..."
            ) from error
        yield


class Study:
    """An Optuna study over the archs of a space, asked in batches and told in trial order.

    Args:
        folder: of the run; the journal file lies in it.
        storage: an Optuna RDB URL, None for the journal file.
        space: of the archs.
        directions: ``maximize`` or ``minimize`` by objective name, in order.
        sampler: what is asked.

    Raises:
        ConfigError: no objective, a direction that is neither, or a storage that cannot be opened.
    """

    def __init__(
        self, folder: Path, storage: str | None, space: SearchSpace, directions: Mapping[str, Direction],
        sampler: BaseSampler,
    ) -> None:  # fmt: skip
        if not directions:
            raise ConfigError("expected at least one objective, got none: objective=[score,macs]")
        for name, direction in directions.items():
            if direction not in ("maximize", "minimize"):
                raise ConfigError(f"expected maximize or minimize for objective {name}, got {direction!r}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.directions = dict(directions)
        self._study = optuna.create_study(
            study_name=STUDY_NAME if storage is None else f"{STUDY_NAME}-{folder.name}",
            storage=_journal(folder / files.STUDY) if storage is None else _database(storage),
            directions=[StudyDirection[direction.upper()] for direction in directions.values()],
            sampler=sampler,
            load_if_exists=True,
        )
        if self._study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental in Optuna; only its dashboard shows them
                self._study.set_metric_names(list(directions))

    def __len__(self) -> int:
        return len(self._trials())

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def ask(self) -> tuple[int, Arch]:
        """The next trial's number and arch."""
        trial = ask(self._study, self.space)
        return trial.number, arch_of(self.space, trial.params)

    def open_trials(self) -> list[tuple[int, Arch]]:
        """Trials that were asked and not told, by number. One that was cut off while it was asked is asked again."""
        found = []
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            if set(trial.params) == set(self.space.names):
                found.append((trial.number, arch_of(self.space, trial.params)))
            else:
                self._finish_asking(trial)
                found.append((trial.number, arch_of(self.space, self._trials()[trial.number].params)))
        return found

    def _finish_asking(self, trial: optuna.trial.FrozenTrial) -> None:
        sampler = self._study.sampler
        space = sampler.infer_relative_search_space(self._study, trial)
        params = sampler.sample_relative(self._study, trial, space)
        storage = self._study._storage
        for name, distribution in space.items():
            if name not in trial.params:
                internal = distribution.to_internal_repr(params[name])
                storage.set_trial_param(trial._trial_id, name, internal, distribution)

    def tell(self, outcome: Outcome) -> None:
        """Finish a trial; a value that is no finite number makes it a failed one, never a bad score."""
        trial = optuna.trial.Trial(self._study, self._trials()[outcome.trial]._trial_id)
        reason = outcome.reason
        values = [outcome.values.get(name, math.nan) for name in self.directions]
        if reason is None and not all(math.isfinite(value) for value in values):
            reason = f"expected numbers, got {dict(outcome.values)}"
        trial.set_user_attr("metrics", {name: value for name, value in outcome.metrics.items() if math.isfinite(value)})
        trial.set_user_attr("seconds", outcome.seconds)
        trial.set_user_attr("device", outcome.device)
        trial.set_user_attr("images", outcome.images)
        if reason is not None:
            trial.set_user_attr(REASON, reason)
            self._study.tell(trial, state=TrialState.PRUNED if outcome.left_out else TrialState.FAIL)
        else:
            self._study.tell(trial, values)

    def told(self) -> list[Trial]:
        """All trials with values, by number."""
        return [
            Trial(
                trial.number,
                arch_of(self.space, trial.params).to_dict(),
                dict(zip(self.directions, trial.values, strict=True)),
                trial.user_attrs.get("metrics", {}),
            )
            for trial in self._trials()
            if trial.state == TrialState.COMPLETE
        ]

    def failures(self) -> list[tuple[int, str]]:
        """Numbers and reasons of failed trials."""
        return [(t.number, t.user_attrs.get(REASON, "")) for t in self._trials() if t.state == TrialState.FAIL]

    def seconds(self, *, accelerator: bool = False) -> float:
        """What the evaluation of all told trials took, or that of those on an accelerator."""
        told = [trial.user_attrs for trial in self._trials() if trial.state.is_finished()]
        return sum(float(own["seconds"]) for own in told if not accelerator or own["device"] != "cpu")

    def images(self) -> int:
        """How many images all told trials were trained on."""
        return sum(int(trial.user_attrs["images"]) for trial in self._trials() if trial.state.is_finished())

    def num_left_out(self) -> int:
        """Trials that were not scored because a measured cost broke a limit."""
        return sum(trial.state == TrialState.PRUNED for trial in self._trials())

    def failures_in_a_row(self) -> int:
        """How many of the last told trials failed, one after the other."""
        count = 0
        for trial in reversed(self._trials()):
            if not trial.state.is_finished():
                continue
            if trial.state != TrialState.FAIL:
                break
            count += 1
        return count


def signs(directions: Iterable[Direction]) -> list[float]:
    """The factors that turn values into minimised ones."""
    return [-1.0 if direction == "maximize" else 1.0 for direction in directions]


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    # The study lock says that nobody else writes: a lock file is a killed process's, for which Optuna waits 30 s.
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):  # cut off in the middle of a line, which spoils every later one
            os.truncate(path, content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _database(url: str) -> Any:
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # SQLAlchemy's, a missing driver's
        raise ConfigError(f"expected search.storage to be a database that opens, got {url}: {error}") from error
