"""Search: samplers propose archs, evaluations measure their objectives, and a study keeps all trials.

`loop` runs a search, `study` stores it, and `problem` holds its space and limits. `samplers` and `objectives` have one
file for each choice on the command line. `front`, `pareto` and `statistics` work on finished trials, and `halving`
decides how long the subnets of trials are trained.

All names exported here are free of torch. Import `evaluate`, `latency_table` and `objectives`, which need torch, by
their own names.
"""

from nas_transfer.search.front import TradeOff, front_of, pick, share_of_hypervolume, write_front
from nas_transfer.search.halving import Rungs
from nas_transfer.search.loop import Budget, Launch, Schedule, SearchLoop
from nas_transfer.search.pareto import hypervolume, non_dominated
from nas_transfer.search.problem import Limit, Problem
from nas_transfer.search.study import Study

__all__ = [
    "Budget",
    "Launch",
    "Limit",
    "Problem",
    "Rungs",
    "Schedule",
    "SearchLoop",
    "Study",
    "TradeOff",
    "front_of",
    "hypervolume",
    "non_dominated",
    "pick",
    "share_of_hypervolume",
    "write_front",
]
