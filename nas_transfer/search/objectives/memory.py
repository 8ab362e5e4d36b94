"""Memory that a candidate needs for a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.search.objectives.base import Candidate, Direction

MIB = 2**20


class Memory:
    """Weights and the largest pair of a layer's input and output, in MiB a batch: what an inference engine must hold.

    An estimate from tensor sizes, the same on every machine: it leaves out workspaces and what a runtime keeps.

    Args:
        direction: ``minimize``.
        batch_size: images a pass.
    """

    measured_first = True

    def __init__(self, direction: Direction, batch_size: int) -> None:
        self.direction = direction
        self.batch_size = batch_size

    def measure(self, candidate: Candidate) -> float:
        """MiB, at the task's input size."""
        task = candidate.subnet
        largest = 0

        def note(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            nonlocal largest
            tensors = [tensor for tensor in (*inputs, output) if isinstance(tensor, Tensor)]
            largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

        leaves = [module for module in task.network.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(note) for leaf in leaves]
        height, width = task.input_size(candidate.arch)
        try:
            with torch.inference_mode():
                task.run_network(torch.zeros(self.batch_size, 3, height, width, device=task.device))
        finally:
            for hook in hooks:
                hook.remove()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in task.network.state_dict().values())
        return (weights + largest) / MIB
