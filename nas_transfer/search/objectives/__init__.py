"""Objectives: what a search measures of a trial. Each has one file here and one in conf/objective."""

from nas_transfer.search.objectives.base import ArchCost, Direction, Objective, TrialSubnet

__all__ = ["ArchCost", "Direction", "Objective", "TrialSubnet"]
