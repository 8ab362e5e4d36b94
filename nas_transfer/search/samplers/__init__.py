"""Samplers: the rules that propose archs. Each has one file here and one or more in conf/sampler.

A sampler is a subclass of `ArchSampler`, which draws reproducibly and keeps infeasible and repeated archs out.
Import `predicted_front`, which needs scikit-learn, by its own name.
"""

from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.search.samplers.evolution import Evolution
from nas_transfer.search.samplers.from_optuna import FromOptuna
from nas_transfer.search.samplers.pareto_evolution import ParetoEvolution
from nas_transfer.search.samplers.random_archs import RandomArchs

__all__ = ["ArchSampler", "Evolution", "FromOptuna", "History", "ParetoEvolution", "RandomArchs"]
