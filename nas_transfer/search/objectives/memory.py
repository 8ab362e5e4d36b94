"""Memory that a network needs for a forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_transfer.ranges import Positive
from nas_transfer.search.objectives.base import Direction, TrialSubnet

MIB = 2**20


class Memory:
    """Weights, and the input and output of the largest layer, in MiB per batch: the least an inference engine holds.

    It is estimated from the sizes of tensors and is the same on every machine. Workspaces and other memory of a runtime
    are not counted.

    Args:
        direction: ``minimize``.
        batch_size: images per pass.
    """

    measured_first = True

    def __init__(self, direction: Direction, batch_size: Positive) -> None:
        self.direction = direction
        self.batch_size = batch_size

    def measure(self, subnet: TrialSubnet) -> float:
        """MiB, at the input size of the task."""
        task = subnet.task
        largest = 0

        def note(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            nonlocal largest
            tensors = [tensor for tensor in (*inputs, output) if isinstance(tensor, Tensor)]
            largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))

        leaves = [module for module in task.network.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(note) for leaf in leaves]
        height, width = task.input_size(subnet.arch)
        try:
            with torch.inference_mode():
                task.run_network(torch.zeros(self.batch_size, 3, height, width, device=task.device))
        finally:
            for hook in hooks:
                hook.remove()
        weights = sum(tensor.numel() * tensor.element_size() for tensor in task.network.state_dict().values())
        return (weights + largest) / MIB
