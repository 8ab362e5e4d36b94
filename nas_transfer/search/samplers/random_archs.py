"""Random search: the baseline that every other sampler has to beat."""

from __future__ import annotations

import numpy as np

from nas_transfer.search.samplers.base import ArchSampler, History
from nas_transfer.space import Arch


class RandomArchs(ArchSampler):
    """Uniform among the feasible archs, without repetition."""

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """A random feasible arch."""
        return self.problem.draw(rng)
