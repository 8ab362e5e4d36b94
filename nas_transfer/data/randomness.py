"""Seeds for the random draws of datasets, each a pure function of a few named numbers."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def stable_seed(*parts: int | str) -> int:
    """Mix numbers and words into one seed in [0, 2**63), the same in every process and Python version.

    Unlike `hash` it does not depend on PYTHONHASHSEED; unlike a sum, (seed 1, epoch 0) and (seed 0, epoch 1) differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seeded_call(function: Callable[..., Result], seed: int, epoch: int, sample_id: int, *inputs: object) -> Result:
    """Call `function(*inputs)` such that its torch draws depend on (seed, epoch, sample_id) alone.

    The random state of the caller is restored afterwards, so that dropout and proposal sampling do not depend on the
    number of workers. Only the CPU generator is seeded: `torch.manual_seed` would also reseed that of the accelerator,
    which `fork_rng(devices=[])` does not restore.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_seed(seed, epoch, sample_id))
        return function(*inputs)


def seeded_order(length: int, seed: int) -> list[int]:
    """The numbers from 0 to `length` - 1 in an order that depends on the seed alone."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
