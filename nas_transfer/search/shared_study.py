"""The study that several workers share: each asks for trials and tells outcomes by itself, in a database of Optuna.

A worker sends heartbeats while it evaluates. The trial of a worker that has been silent for too long is asked again, up
to a number of times (Optuna's heartbeats and its RetryHeartbeatStaleTrialCallback). A trial that is asked again keeps
its number in files and reports, although Optuna gives each attempt a number of its own.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Direction, Outcome, files, read_outcome
from nas_transfer.runs.lock import short_lock
from nas_transfer.search.attempts import latest_attempts, num_dead, origin, reason_of
from nas_transfer.search.database import TrialDatabase, write_ahead
from nas_transfer.search.samplers.base import ORIGIN, ArchSampler, arch_of
from nas_transfer.search.study import REASON, SCORED, Study, attributes_of
from nas_transfer.space import SearchSpace

logger = logging.getLogger(__name__)

PROGRAM = "program"
"""Attribute of the study: the hash of the program whose workers may take part."""
BEATS = 4
"""Heartbeats within the time after which a silent worker counts as dead."""
SQLITE_SECONDS = 60
"""How long a worker waits for another one to finish writing an SQLite file."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """When a worker counts as dead, and how often its trial is asked again.

    Args:
        grace_seconds: time without a heartbeat after which a worker counts as dead.
        retries: how often a trial is asked again after its worker has died.
    """

    grace_seconds: int = 120
    retries: int = 3

    @property
    def heartbeat_seconds(self) -> int:
        """Time between two heartbeats."""
        return max(1, self.grace_seconds // BEATS)


@dataclass(frozen=True)
class Asked:
    """A trial that this worker evaluates.

    Attributes:
        number: its number in files and reports.
        arch: its arch.
        attempt: Optuna's number of this attempt.
        trial_id: Optuna's key of this attempt in the database.
    """

    number: int
    arch: Arch
    attempt: int
    trial_id: int


class SharedStudy(Study):
    """A study that several workers write, on one or on many machines.

    Only one worker at a time asks (`take`), under a lock in the run folder. A trial counts as told once the database
    has it; its file is written afterwards, and `publish` writes those that are missing.

    Args:
        folder: run folder of the search, which all workers share.
        storage: an Optuna RDB URL; None for an SQLite file in `folder`, for workers on one machine.
        space: the space of the archs.
        directions: ``maximize`` or ``minimize`` by the name of an objective, in order.
        sampler: the sampler that proposes archs.
        patience: when a worker counts as dead.

    Raises:
        ConfigError: the storage cannot be opened.
        RunError: the run was begun without workers.
    """

    def __init__(
        self, folder: Path, storage: str | None, space: SearchSpace, directions: Mapping[str, Direction],
        sampler: ArchSampler, patience: Patience,
    ) -> None:  # fmt: skip
        if (folder / files.STUDY).exists():
            raise RunError(
                f"the search in {folder} was begun in batches: leave search.workers out to continue it, or use another "
                "name=..."
            )
        self.folder = folder
        self.patience = patience
        self._num_genes = len(space.genes)
        self.sampler = sampler
        self._read: list[FrozenTrial] | None = None
        self._listed: list[tuple[int, FrozenTrial]] | None = None
        self._stale: list[FrozenTrial] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental in Optuna
            self._retry = RetryHeartbeatStaleTrialCallback(patience.retries)
        super().__init__(folder, storage, space, directions, sampler)

    def _open(self, folder: Path, storage: str | None) -> optuna.storages.BaseStorage:
        url = storage or f"sqlite:///{folder.resolve() / files.STUDY_DATABASE}"
        is_sqlite = url.startswith("sqlite")
        options = {"connect_args": {"timeout": SQLITE_SECONDS}} if is_sqlite else {"pool_pre_ping": True}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # heartbeats are experimental in Optuna
                self.database = TrialDatabase(
                    self._num_genes, url, options, self.patience.heartbeat_seconds, self.patience.grace_seconds,
                    lambda _, trial: self._stale.append(trial),
                )  # fmt: skip
        except Exception as error:  # of SQLAlchemy, or a missing driver
            raise ConfigError(
                f"search.storage must be the URL of a database, cannot open {url}: {' '.join(str(error).split())}"
            ) from error
        if storage is None:
            sqlalchemy.event.listen(self.database.engine, "connect", write_ahead)
            self.database.engine.dispose()  # connections from before the listener
        return self.database

    @property
    def program(self) -> str | None:
        """The hash of the program whose workers may take part; None before the search has begun."""
        program = self._study.user_attrs.get(PROGRAM)
        return None if program is None else str(program)

    @program.setter
    def program(self, sha256: str) -> None:
        self._study.set_user_attr(PROGRAM, sha256)

    def _numbered(self) -> list[tuple[int, FrozenTrial]]:
        if self._read is None:
            return latest_attempts(self._trials())
        if self._listed is None:
            self._listed = latest_attempts(self._read)
        return self._listed

    @property
    def num_open(self) -> int:
        """How many trials run or are to be asked again."""
        return sum(not trial.state.is_finished() or self._has_retry(trial) for _, trial in self._numbered())

    def _has_retry(self, trial: FrozenTrial) -> bool:
        """Whether the worker of the latest attempt has died, and the trial is to be asked again."""
        return trial.state == TrialState.FAIL and REASON not in trial.user_attrs and self._may_retry(trial)

    def _may_retry(self, trial: FrozenTrial) -> bool:
        return num_dead(trial) < self.patience.retries

    @property
    def num_told(self) -> int:
        """How many trials are finished."""
        return len(self._finished())

    def failures(self) -> list[tuple[int, str]]:
        """Numbers and reasons of failed trials."""
        failed = [(number, trial) for number, trial in self._numbered() if trial.state == TrialState.FAIL]
        return [(number, reason_of(trial) or "") for number, trial in failed]

    def take(self, may_ask: Callable[[], bool]) -> Asked | None:
        """Ask for a trial: first those whose workers have died, then a new one if `may_ask` allows it.

        Args:
            may_ask: called while no other worker asks.

        Returns:
            The trial, None if there is none to evaluate now.
        """
        return self.persistently(lambda: self._take(may_ask))

    def _take(self, may_ask: Callable[[], bool]) -> Asked | None:
        self.sampler.prepare(self._study)
        with self._lock():
            trials = self._trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and not self._is_whole(trial):  # its worker died while it asked
                    return self._begin(self._key(trial.number), trials)
            if self._put_back_dead(trials):
                trials = self._trials()
            for trial in trials:
                if trial.state == TrialState.WAITING:
                    key = self._key(trial.number)
                    self.database.record_heartbeat(key)  # before it runs: it can never run without
                    self.database.set_trial_state_values(key, TrialState.RUNNING)
                    return self._begin(key, trials)
            with self._seen(trials):
                asks = may_ask()
            if not asks:
                return None
            return self._begin(self.database.create_new_trial(self._study_id), trials)

    @contextmanager
    def _seen(self, trials: list[FrozenTrial]) -> Iterator[None]:
        """Let all questions to the study be answered from these trials, without the database."""
        self._read = trials
        try:
            yield
        finally:
            self._read = self._listed = None

    def _trials(self) -> list[FrozenTrial]:
        return super()._trials() if self._read is None else self._read

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with short_lock(self.folder / files.ASK_LOCK):
            yield

    def _is_whole(self, trial: FrozenTrial) -> bool:
        return set(trial.params) == set(self.space.names)

    def _begin(self, trial_id: int, trials: list[FrozenTrial]) -> Asked:
        """Record a heartbeat for a trial, and choose its arch if it has none; `trials` are those before."""
        self.database.record_heartbeat(trial_id)
        trial = self.database.get_trial(trial_id)
        params = trial.params if self._is_whole(trial) else self._choose(trial, trials)
        first = origin(trial)
        number = sum(origin(each) == each.number for each in trials if each.number < first)
        return Asked(number, arch_of(self.space, params), trial.number, trial_id)

    def _choose(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> dict[str, int]:
        """Let the sampler choose the arch of a trial, and write its genes in place of those of a dead worker."""
        self.sampler.known_trials = trials
        # Optuna's ask does this for samplers, which may remember all trials; there is no public way. Ask itself is not
        # used, since it writes each gene in a transaction of its own.
        self._study._thread_local.cached_all_trials = None
        self.sampler.before_trial(self._study, trial)
        space = self.sampler.infer_relative_search_space(self._study, trial)
        params = self.sampler.sample_relative(self._study, trial, space)
        self.database.set_params(self._key(trial.number), params, space)
        return params

    def _put_back_dead(self, trials: list[FrozenTrial]) -> bool:
        """Let the trials of dead workers fail, and ask them again unless that was done too often.

        Args:
            trials: the trials so far.

        Returns:
            Whether any trial has changed.
        """
        self._stale.clear()
        if self.database.has_stale(self._study_id):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental in Optuna
                optuna.storages.fail_stale_trials(self._study)
        is_changed = bool(self._stale)
        if is_changed:
            trials = self._trials()
        with self._seen(trials):
            latest = self._numbered()
        stale = {trial.number for trial in self._stale}  # also those whose workers died while they told a reason
        for number, trial in latest:
            if self._has_retry(trial) or (trial.number in stale and self._may_retry(trial)):
                logger.warning("the worker of trial %d died: it is asked again", number)
                self._retry(self._study, trial)
                is_changed = True
        return is_changed

    def give_back(self, asked: Asked) -> None:
        """Let another worker evaluate a trial, because this one ends. It does not count as one of the retries."""
        with self._lock():
            try:
                self.database.set_trial_state_values(asked.trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                return
            trial = self.database.get_trial(asked.trial_id)
            self._study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs={**trial.system_attrs, ORIGIN: origin(trial)},
                )
            )

    def finish(self, asked: Asked, outcome: Outcome) -> bool:
        """Tell the outcome of a trial, then write its file.

        Returns:
            False if the trial was asked again meanwhile, because this worker was silent for too long. Nothing is told.
        """
        final = self._final(outcome)
        if not self.persistently(lambda: self._tell_once(asked, final)):
            logger.warning("trial %d was asked again, because this worker sent no heartbeat for too long", asked.number)
            return False
        final.write(self.folder / files.trial_file(asked.number))
        return True

    def _tell_once(self, asked: Asked, final: Outcome) -> bool:
        attributes = attributes_of(final) | {"training_seconds": final.training_seconds}
        state, values = self._state(final)
        try:
            with self._lock():  # not while another worker lets it fail: Optuna reads and writes its state in two steps
                self.database.set_user_attrs(asked.trial_id, attributes)
                self._study.tell(asked.attempt, values, state)
        except (UpdateFinishedTrialError, ValueError):  # Optuna's tell raises ValueError for a finished trial
            if not self.database.get_trial(asked.trial_id).state.is_finished():
                raise
            return False
        return True

    def publish(self) -> None:
        """Write the files of told trials that are missing or differ, because their workers died before they did."""
        for number, trial in self._numbered():
            if not trial.state.is_finished() or self._has_retry(trial):
                continue
            path = self.folder / files.trial_file(number)
            try:
                outcome = read_outcome(path)
            except RunError as error:
                logger.warning("%s; it is written again from the study", error)
                outcome = None
            told = self._outcome_of(number, trial)
            if outcome is None or (outcome.values, outcome.left_out) != (told.values, told.left_out):
                told.write(path)

    def _outcome_of(self, number: int, trial: FrozenTrial) -> Outcome:
        attributes = trial.user_attrs
        return Outcome(
            number,
            json.loads(json.dumps(arch_of(self.space, trial.params).to_dict())),
            dict(zip(self.directions, trial.values or [])),
            reason=reason_of(trial),
            left_out=trial.state == TrialState.PRUNED,
            metrics=attributes.get("metrics", {}),
            seconds=float(attributes.get("seconds", 0.0)),
            training_seconds=float(attributes.get("training_seconds", 0.0)),
            device=str(attributes.get("device", "cpu")),
            images=int(attributes.get("images", 0)),
            training_macs=int(attributes.get("training_macs", 0)),
            scored=float(attributes.get(SCORED, 1.0)),
        )

    @contextmanager
    def heartbeats(self, asked: Asked) -> Iterator[None]:
        """Send heartbeats while the block runs."""
        ended = threading.Event()
        thread = threading.Thread(target=self._send_heartbeats, args=(asked.trial_id, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _send_heartbeats(self, trial_id: int, ended: threading.Event) -> None:
        while not ended.wait(self.patience.heartbeat_seconds):
            try:
                self.database.record_heartbeat(trial_id)
            except Exception as error:  # the next one may reach the database again
                logger.warning("a heartbeat did not reach the database: %s", " ".join(str(error).split()))

    def persistently(self, call: Callable[[], Answer]) -> Answer:
        """Call again for as long as the database does not answer and this worker does not count as dead."""
        end = time.monotonic() + self.patience.grace_seconds
        delay = 0.1
        while True:
            try:
                return call()
            except (StorageInternalError, OperationalError) as error:
                if time.monotonic() + delay > end:
                    raise RunError(
                        f"the database of the search does not answer: {' '.join(str(error).split())}; the same command "
                        "continues when it does"
                    ) from error
                logger.warning("the database of the search does not answer, waiting %.1f s", delay)
                time.sleep(delay)
                delay = min(2 * delay, self.patience.heartbeat_seconds)
