"""Random search, the baseline of all other samplers."""

from __future__ import annotations

import numpy as np

from nas_transfer.arch import Arch
from nas_transfer.search.samplers.base import ArchSampler, History


class RandomArchs(ArchSampler):
    """Sampler that draws archs uniformly among the feasible ones, without repetition."""

    def propose(self, history: History, number: int, rng: np.random.Generator) -> Arch:
        """Propose a random feasible arch."""
        return self.problem.draw(rng)
