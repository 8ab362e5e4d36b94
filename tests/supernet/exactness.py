"""What holds for the supernets of every family: a subnet that is cut out equals the active one."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nas_transfer.arch import Arch
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices, leading_slice
from nas_transfer.supernet.protocol import SupernetTable

NUM_CLASSES = 7


def randomise_convnext(network: nn.Module) -> None:
    """Give a ConvNeXt, ours or a public one, weights under which every tensor matters and values stay near 1."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and parameter.shape[1:] != (1, 1):
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "bias" in name:
            nn.init.normal_(parameter, std=0.2)
        else:  # norms, and layer scales, which begin close to 0
            nn.init.uniform_(parameter, 0.3, 1.2)


def extract(supernet: nn.Module, subnet: nn.Module) -> nn.Module:
    """A plain subnet with the weights, the precision and the mode of the supernet."""
    copy_slices(supernet, subnet.to(next(supernet.parameters()).dtype))
    return subnet.train(supernet.training)


def cut_body(table: SupernetTable, body: nn.Module, arch: Arch) -> nn.Module:
    """The plain body of an arch."""
    return extract(body, build_body(table, arch))


def cut(table: SupernetTable, body: nn.Module, classifier: nn.Module, arch: Arch) -> tuple[nn.Module, nn.Module]:
    """The plain body and head of an arch."""
    return cut_body(table, body, arch), extract(classifier, build_classifier(table, NUM_CLASSES, arch))


def require_equal_subnets(
    table: SupernetTable, body: nn.Module, classifier: nn.Module, tolerance: float, *, archs: int
) -> None:
    """Compare outputs and gradients of the active subnet of random archs with those of its plain copy.

    Args:
        table: the table of the supernet.
        body, classifier: the supernet, whose head has `NUM_CLASSES` classes.
        tolerance: of outputs; gradients are compared with ten times this one.
        archs: how many archs are drawn.
    """
    generator = np.random.default_rng(0)
    for _ in range(archs):
        arch = table.space.sample(generator)
        images = torch.randn(3, 3, 45, 62, dtype=next(body.parameters()).dtype)  # odd sides, not square
        for network in (body, classifier):
            network.zero_grad()
            if hasattr(network, "set_arch"):
                network.set_arch(arch)
        static_body, static_classifier = cut(table, body, classifier, arch)
        taps, static_taps = body(images), static_body(images)
        logits, static_logits = classifier(taps[-1]), static_classifier(static_taps[-1])
        for ours, theirs in zip([*taps, logits], [*static_taps, static_logits], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        (sum(tap.square().mean() for tap in taps) + logits.square().sum()).backward()
        (sum(tap.square().mean() for tap in static_taps) + static_logits.square().sum()).backward()
        for shared, static in ((body, static_body), (classifier, static_classifier)):
            gradients = {name: parameter.grad for name, parameter in shared.named_parameters()}
            for name, parameter in static.named_parameters():
                whole = gradients.pop(name)
                part = leading_slice(whole, parameter.shape, name)
                scale = parameter.grad.abs().max().item()
                torch.testing.assert_close(part, parameter.grad, rtol=10 * tolerance, atol=10 * tolerance * scale)
                # nothing outside of the slice may have a gradient
                torch.testing.assert_close(whole.abs().sum(), part.abs().sum())
            assert all(gradient is None for gradient in gradients.values())
