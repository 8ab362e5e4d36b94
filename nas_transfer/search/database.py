"""Optuna's storage in a database, for many trials that run at the same time.

Optuna reads and writes each parameter and each attribute as an object of its own, and reads all unfinished trials in
full each time the trials of a study are read. With hundreds of workers, of which each reads what all others ask and
tell, this takes more time than evaluations. `TrialDatabase` therefore overrides `RDBStorage._get_trials`, which is
private: Optuna has no public way to read only the trials that have changed. The tables are those of Optuna, which
checks their version when it opens a database.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

MOST_IDS = 1000
"""Trials that one query reads: databases limit the number of parameters of a query."""


def _table(name: str, **columns: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.TableClause:
    return sa.table(name, sa.column("trial_id", sa.Integer), *(sa.column(key, of) for key, of in columns.items()))


TRIALS = _table(
    "trials", study_id=sa.Integer, number=sa.Integer, state=sa.Enum(TrialState), datetime_start=sa.DateTime,
    datetime_complete=sa.DateTime,
)  # fmt: skip
PARAMS = _table(
    "trial_params", param_id=sa.Integer, param_name=sa.String, param_value=sa.Float(53), distribution_json=sa.Text
)
VALUES = _table("trial_values", objective=sa.Integer, value=sa.Float(53))
USER, SYSTEM = (_table(f"trial_{kind}_attributes", key=sa.String, value_json=sa.Text) for kind in ("user", "system"))
BEATS = _table("trial_heartbeats", heartbeat=sa.DateTime)


class TrialDatabase(RDBStorage):
    """An RDBStorage that reads a trial again only if its state has changed, and writes a whole arch at once.

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
        self._space: dict[str, BaseDistribution] = {}
        self._grace = timedelta(seconds=grace_period)
        self._unfinished: dict[int, FrozenTrial] = {}  # with all parameters, as they were last read, by their key
        super().__init__(
            url, engine_kwargs=dict(engine_kwargs), heartbeat_interval=heartbeat_interval, grace_period=grace_period,
            heartbeat_stale_trial_callback=on_stale,
        )  # fmt: skip

    def set_params(
        self, trial_id: int, params: Mapping[str, int], distributions: Mapping[str, BaseDistribution]
    ) -> None:
        """Write all parameters of a trial in one transaction, in place of those that it may have."""
        rows = [
            {
                "trial_id": trial_id, "param_name": name, "param_value": distribution.to_internal_repr(params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in distributions.items()
        ]  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.delete(PARAMS).where(PARAMS.c.trial_id == trial_id))
            connection.execute(sa.insert(PARAMS), rows)

    def set_user_attrs(self, trial_id: int, attributes: Mapping[str, object]) -> None:
        """Write attributes of a trial in one transaction, in place of those of the same names.

        Raises:
            UpdateFinishedTrialError: the trial is finished.
        """
        rows = [
            {"trial_id": trial_id, "key": name, "value_json": json.dumps(value)} for name, value in attributes.items()
        ]
        with self.engine.begin() as connection:
            state = connection.execute(sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id)).scalar_one()
            if state.is_finished():
                raise UpdateFinishedTrialError(f"trial {trial_id} of the database is finished")
            connection.execute(sa.delete(USER).where(USER.c.trial_id == trial_id, USER.c.key.in_(list(attributes))))
            connection.execute(sa.insert(USER), rows)

    def has_stale(self, study_id: int) -> bool:
        """Whether a trial runs that has had no heartbeat for the grace period, by one query.

        `fail_stale_trials` reads all running trials.
        """
        with self.engine.connect() as connection:
            now = connection.execute(sa.select(sa.func.now())).scalar_one().replace(tzinfo=None)
            oldest = connection.execute(
                sa.select(sa.func.min(BEATS.c.heartbeat))
                .join(TRIALS, TRIALS.c.trial_id == BEATS.c.trial_id)
                .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
            ).scalar_one()
        return oldest is not None and now - oldest > self._grace

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Those of the given trials, and of all later ones, that are not as they were last read."""
        if states is not None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        after = min([trial_id_greater_than, *(trial_id - 1 for trial_id in included_trial_ids)])
        with self.engine.connect() as connection:
            query = sa.select(TRIALS.c.trial_id, TRIALS.c.state)
            rows = connection.execute(query.where(TRIALS.c.study_id == study_id, TRIALS.c.trial_id > after)).all()
            if not included_trial_ids and trial_id_greater_than < 0:
                return self._read(connection, [trial_id for trial_id, _ in rows])
            changed = [
                trial_id
                for trial_id, state in rows
                if (trial_id in included_trial_ids or trial_id > trial_id_greater_than)
                and not (trial_id in self._unfinished and self._unfinished[trial_id].state == state)
            ]
            return self._read(connection, changed)

    def _read(self, connection: sa.Connection, trial_ids: Collection[int]) -> list[FrozenTrial]:
        """Read trials. Parameters are not read again, since they do not change once all of them are written.

        Each query may see more than the one before it. The states are read first, so that a trial which is read as
        finished has all that was written when it finished.
        """
        rows = sorted(_rows(connection, TRIALS, trial_ids), key=lambda row: row.trial_id)
        new = [trial_id for trial_id in trial_ids if trial_id not in self._unfinished]
        params: dict[int, dict[str, int]] = {trial_id: {} for trial_id in new}
        distributions: dict[int, dict[str, BaseDistribution]] = {trial_id: {} for trial_id in new}
        for row in _rows(connection, PARAMS, new):
            distribution = _distribution(row.distribution_json)
            name = sys.intern(row.param_name)  # not a string for each trial
            params[row.trial_id][name] = distribution.to_external_repr(row.param_value)
            distributions[row.trial_id][name] = distribution
        values: dict[int, dict[int, float]] = {trial_id: {} for trial_id in trial_ids}
        for row in _rows(connection, VALUES, trial_ids):
            values[row.trial_id][row.objective] = row.value
        user, system = (_attributes(connection, each, trial_ids) for each in (USER, SYSTEM))
        trials = []
        for row in rows:
            known, told = self._unfinished.pop(row.trial_id, None), values[row.trial_id]
            space = distributions[row.trial_id] if known is None else known.distributions
            if len(space) == self._num_params and space != self._space:
                self._space = space
            trial = FrozenTrial(
                number=row.number,
                state=row.state,
                value=None,
                values=[told[objective] for objective in sorted(told)] or None,
                datetime_start=row.datetime_start,
                datetime_complete=row.datetime_complete,
                params=params[row.trial_id] if known is None else known.params,
                distributions=self._space if space == self._space else space,  # all trials share one
                user_attrs=user[row.trial_id],
                system_attrs=system[row.trial_id],
                intermediate_values={},  # this program reports none
                trial_id=row.trial_id,
            )
            if not trial.state.is_finished() and len(trial.params) == self._num_params:
                self._unfinished[row.trial_id] = trial
            trials.append(trial)
        return trials


def write_ahead(connection: object, _: object) -> None:
    """Let readers of an SQLite file not wait for writers, and writers not for the disk.

    After a power failure, the last trials may be missing in the file. They are then evaluated again.
    """
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _rows(
    connection: sa.Connection, of: sa.TableClause, trial_ids: Collection[int]
) -> Iterator[sa.Row[tuple[object, ...]]]:
    """The rows of a table that belong to trials."""
    ids = list(trial_ids)
    query = sa.select(of).where(of.c.trial_id.in_(sa.bindparam("ids", expanding=True)))
    if "param_id" in of.c:
        query = query.order_by(of.c.param_id)
    for start in range(0, len(ids), MOST_IDS):
        yield from connection.execute(query, {"ids": ids[start : start + MOST_IDS]})


def _attributes(
    connection: sa.Connection, of: sa.TableClause, trial_ids: Collection[int]
) -> dict[int, dict[str, object]]:
    attributes: dict[int, dict[str, object]] = {trial_id: {} for trial_id in trial_ids}
    for row in _rows(connection, of, trial_ids):
        attributes[row.trial_id][sys.intern(row.key)] = json.loads(row.value_json)
    return attributes


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)
