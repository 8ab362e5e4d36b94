"""Optuna's storage in a database, for many trials that run at the same time."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

STATES = sqlalchemy.text("SELECT trial_id, state FROM trials WHERE study_id = :study AND trial_id > :after")

CLEAR = sqlalchemy.text("DELETE FROM trial_params WHERE trial_id = :trial")


class TrialDatabase(RDBStorage):
    """An RDBStorage that reads a trial again only if its state has changed.

    Each time the trials of a study are read, Optuna reads all unfinished ones in full. Their parameters and attributes
    take 1.5 ms each, which many workers cannot afford for each trial they ask for. This class reads the states first.

    Args:
        num_params: number of parameters of a trial. One that has fewer is read again, since they are being written.
        url: Optuna's URL of the database.
        engine_kwargs: arguments of SQLAlchemy's engine.
        heartbeat_interval: seconds between two heartbeats.
        grace_period: seconds without a heartbeat after which a trial is stale.
        on_stale: called with each trial that `optuna.storages.fail_stale_trials` has let fail.
    """

    def __init__(
        self, num_params: int, url: str, engine_kwargs: Mapping[str, object], heartbeat_interval: int,
        grace_period: int, on_stale: Callable[[Study, FrozenTrial], None],
    ) -> None:  # fmt: skip
        self._num_params = num_params
        self._states: dict[int, str] = {}  # of unfinished trials as they were last read, by their key
        super().__init__(
            url, engine_kwargs=dict(engine_kwargs), heartbeat_interval=heartbeat_interval, grace_period=grace_period,
            heartbeat_stale_trial_callback=on_stale,
        )  # fmt: skip

    def clear_params(self, trial_id: int) -> None:
        """Remove the parameters of a trial: Optuna keeps the value of one that is written twice, and says nothing."""
        with self.engine.begin() as connection:
            connection.execute(CLEAR, {"trial": trial_id})

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Those of the given trials, and of all later ones, that are not as they were last read."""
        if states is not None or (not included_trial_ids and trial_id_greater_than < 0):
            return self._remembered(super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than))
        after = min([trial_id_greater_than, *(trial_id - 1 for trial_id in included_trial_ids)])
        with self.engine.connect() as connection:
            rows = connection.execute(STATES, {"study": study_id, "after": after}).all()
        changed = {
            trial_id
            for trial_id, state in rows
            if (trial_id in included_trial_ids or trial_id > trial_id_greater_than)
            and self._states.get(trial_id) != state
        }
        if not changed:
            return []
        latest = max(trial_id for trial_id, _ in rows)  # all later ones than the given number would be read
        return self._remembered(super()._get_trials(study_id, None, changed, latest))

    def _remembered(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        for trial in trials:
            if trial.state.is_finished() or len(trial.params) < self._num_params:
                self._states.pop(trial._trial_id, None)
            else:
                self._states[trial._trial_id] = trial.state.name
        return trials
