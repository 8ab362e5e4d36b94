"""Elastic layers behind joined maps against plain layers whose weights are picked channel by channel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas_transfer.supernet.joined import Joined, JoinedBatchNorm2d, JoinedConv2d
from nas_transfer.supernet.ops import ElasticConv2d, copy_slices

COUNT, WIDTH, FIXED = 4, 6, 5


def picked(count: int, width: int, fixed: int) -> list[int]:
    """The active channels, one by one: the first `width` of the first `count` maps, and all fixed ones."""
    channels = [number * WIDTH + channel for number in range(count) for channel in range(width)]
    return channels + [COUNT * WIDTH + channel for channel in range(fixed)]


@pytest.mark.parametrize("fixed", [0, FIXED])
@pytest.mark.parametrize(("count", "width"), [(4, 6), (4, 3), (3, 4), (2, 6), (1, 1)])
def test_a_joined_convolution_uses_the_leading_channels_of_each_map(count: int, width: int, fixed: int) -> None:
    torch.manual_seed(0)
    layer = JoinedConv2d(Joined(COUNT, WIDTH, fixed), WIDTH, 3).double()
    layer.active_out_channels = width
    channels = picked(count, width, fixed)
    features = torch.randn(2, len(channels), 5, 7, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach()[:width][:, channels].clone().requires_grad_(True)
    expected = F.conv2d(features, weight, padding=1)
    found = layer(features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(expected)
    gradient = torch.zeros_like(layer.weight)
    wanted, reached = torch.autograd.grad(expected, (weight, features), slope)
    for row in range(width):
        for position, channel in enumerate(channels):
            gradient[row, channel] = wanted[row, position]
    found.backward(slope)
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(features.grad, reached, rtol=1e-12, atol=1e-12)
    layer(features).backward(slope)  # a second pass adds to the gradient
    torch.testing.assert_close(layer.weight.grad, 2 * gradient, rtol=1e-12, atol=1e-12)
    plain = nn.Conv2d(len(channels), width, 3, padding=1, bias=False).double()
    copy_slices(nn.Sequential(layer), nn.Sequential(plain))
    torch.testing.assert_close(plain(features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("width", [1, 4, 6])
def test_a_depthwise_convolution_and_its_batch_norm_keep_the_fixed_channels(width: int, training: bool) -> None:
    torch.manual_seed(0)
    joined = Joined(1, WIDTH, FIXED)
    network = nn.Sequential(
        JoinedConv2d(joined, joined.channels, 3, depthwise=True), JoinedBatchNorm2d(joined, 1e-3)
    ).double()
    for tensor in (network[1].weight, network[1].bias, network[1].running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    channels = [*range(width), *range(WIDTH, WIDTH + FIXED)]
    plain = nn.Sequential(
        nn.Conv2d(len(channels), len(channels), 3, padding=1, groups=len(channels), bias=False),
        nn.BatchNorm2d(len(channels), eps=1e-3),
    ).double()
    with torch.no_grad():
        plain[0].weight.copy_(network[0].weight[channels])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(plain[1], name).copy_(getattr(network[1], name)[channels])
    copied = nn.Sequential(nn.Conv2d(len(channels), len(channels), 3, groups=len(channels), bias=False))
    copied.append(nn.BatchNorm2d(len(channels)))
    copy_slices(network, copied.double())
    for name, tensor in copied.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    features = torch.randn(2, len(channels), 5, 7, dtype=torch.float64)
    found, expected = network.train(training)(features), plain.train(training)(features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward(), expected.square().sum().backward()
    for own, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad[channels], other.grad, rtol=1e-9, atol=1e-9)
        assert own.grad.sum().item() == pytest.approx(own.grad[channels].sum().item(), abs=1e-9)


def test_a_joined_convolution_starts_and_computes_as_an_elastic_one_at_the_largest_sizes() -> None:
    torch.manual_seed(0)
    joined = JoinedConv2d(Joined(COUNT, WIDTH, FIXED), WIDTH, 3)
    torch.manual_seed(0)
    elastic = ElasticConv2d(COUNT * WIDTH + FIXED, WIDTH, 3)
    assert joined.state_dict().keys() == elastic.state_dict().keys()
    features = torch.randn(2, COUNT * WIDTH + FIXED, 5, 7)
    assert torch.equal(joined(features), elastic(features))


def test_maps_that_do_not_fit_are_refused() -> None:
    joined = Joined(COUNT, WIDTH, FIXED)
    for channels, width in ((FIXED, 3), (FIXED + 7, 3), (FIXED + 5 * 6, 6), (FIXED + 7, 7)):
        with pytest.raises(ValueError, match=f"4 joined maps .* must hold {channels} channels in maps of {width}"):
            joined.ranges(channels, width)
    with pytest.raises(ValueError, match="as wide as its maps"):
        JoinedConv2d(joined, 3)
    with pytest.raises(ValueError, match="as wide as its maps"):
        JoinedConv2d(joined, joined.channels, depthwise=True)
    with pytest.raises(ValueError, match="one map that can shrink"):
        JoinedBatchNorm2d(joined, 1e-3)
