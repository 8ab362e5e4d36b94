"""Closed-form fits of a subnet's layers to what the largest network computes, and the order of channels behind them.

Ridge regression is that of Hoerl and Kennard (1970). Choosing channels and refitting the layer that reads them is
channel pruning by reconstruction (He et al. 2017; ThiNet, Luo et al. 2017); the elimination of one channel at a time
with an update of the others is that of optimal brain compression (Frantar and Alistarh 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_transfer.supernet.calibrate import Moments
from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.norms import LayerScale

TINY_VARIANCE = 1e-10
"""A channel of less variance is constant: its scale is left alone."""
DEAD_SHARE = 1e-3
"""Share of the mean variance in the penalty of an input without variance."""
SMALLEST_SCALE = 1e-3
"""A layer scale below this is replaced by 1 where weights are divided by it."""


RECTIFIED_ROUNDS = 3
"""Times that a projection before a ReLU is fitted again."""


class Ridge:
    """The regression of targets on inputs, with bias, for any penalty.

    Args:
        inputs: (R, C), one row for each sample.
        targets: (R, O).
        prior: the weight (O, C) towards which the penalty pulls; None for zero.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, prior: Tensor | None = None) -> None:
        self.input_mean, self.target_mean = inputs.mean(0), targets.mean(0)
        self._rows = inputs, targets
        self._gram, self._cross = self._products(inputs.dtype)
        self.prior = torch.zeros_like(self._cross.T) if prior is None else prior

    def aimed_at(self, targets: Tensor) -> Ridge:
        """The regression of other targets on the same inputs."""
        other = copy.copy(self)
        inputs = self._rows[0]
        other._rows, other.target_mean = (inputs, targets), targets.mean(0)
        other._cross = (inputs - self.input_mean).T @ (targets - other.target_mean)
        return other

    def _products(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gram matrix (C, C) of the centred inputs, and their products (C, O) with the centred targets."""
        inputs, targets = (rows.to(dtype) for rows in self._rows)
        centred = inputs - inputs.mean(0)
        return centred.T @ centred, centred.T @ (targets - targets.mean(0))

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """The weight (O, C) and bias (O,) of least squared error plus a penalty on the distance to the prior.

        The normal equations are solved by Cholesky, in float64 where float32 breaks down.

        Args:
            penalty: above 0, for each input in units of its own variance times the number of rows, to which a
                thousandth of the mean variance is added so that constant inputs get a penalty too. The bias is free.

        Raises:
            ValueError: the rows are not finite.
        """
        solution = self._solve(self._gram, self._cross, penalty)
        if solution is None:
            solution = self._solve(*self._products(torch.float64), penalty)
        if solution is None:
            raise ValueError("the activations of a layer must be finite, got some that no regression fits")
        weight = solution.to(self._gram.dtype).T
        return weight, self.target_mean - weight @ self.input_mean

    def _solve(self, gram: Tensor, cross: Tensor, penalty: float) -> Tensor | None:
        """The solution (C, O), None where Cholesky fails."""
        variances = gram.diagonal()
        mean = variances.mean()
        if mean == 0:
            return self.prior.T
        ridge = penalty * (variances + DEAD_SHARE * mean)
        factor, info = torch.linalg.cholesky_ex(gram + ridge.diag())
        if int(info):
            return None
        solution = torch.cholesky_solve(cross + ridge[:, None] * self.prior.T, factor)
        return solution if bool(solution.isfinite().all()) else None


def fit(
    inputs: Tensor, targets: Tensor, held: Tensor, penalties: Sequence[float], prior: Tensor | None = None
) -> tuple[Tensor, Tensor, float, Tensor]:
    """The ridge regression whose penalty has the least squared error on held-out rows.

    Args:
        inputs: (R, C).
        targets: (R, O).
        held: bool (R,), the rows that are held out; neither all nor none.
        penalties: the penalties to try, see `Ridge.solve`.
        prior: see `Ridge`.

    Returns:
        Weight (O, C), bias (O,), the penalty, and for the held-out rows what was predicted minus what was wanted.
    """
    ridge = Ridge(inputs[~held], targets[~held], prior)
    seen, wanted = inputs[held], targets[held]
    found = []
    for penalty in penalties:
        weight, bias = ridge.solve(penalty)
        found.append((weight, bias, penalty, torch.addmm(bias, seen, weight.T) - wanted))
    return min(found, key=_squared_error)


def fit_rectified(
    inputs: Tensor, targets: Tensor, shift: Tensor, held: Tensor, penalties: Sequence[float], prior: Tensor
) -> tuple[Tensor, Tensor, float, Tensor]:
    """The same for what a ReLU makes of the sums of the targets and a given shift.

    Where the wanted sum is negative, any negative one is as good: the best solution is fitted again, a few times, to
    what it predicts there (Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.2).

    Args:
        inputs, targets, held, penalties, prior: as in `fit`.
        shift: (R, O).

    Returns:
        As `fit`, with the difference behind the ReLU.
    """
    used = ~held
    ridge = Ridge(inputs[used], targets[used], prior)
    wanted, read, seen = (targets[held] + shift[held]).relu(), inputs[used], inputs[held]

    def solve(aimed: Ridge, penalty: float) -> tuple[Tensor, Tensor, float, Tensor]:
        weight, bias = aimed.solve(penalty)
        return weight, bias, penalty, (torch.addmm(bias, seen, weight.T) + shift[held]).relu() - wanted

    best = solution = min((solve(ridge, penalty) for penalty in penalties), key=_squared_error)
    sums, shift_used = targets[used] + shift[used], shift[used]
    for _ in range(RECTIFIED_ROUNDS):
        weight, bias, penalty, _ = solution
        predicted = torch.addmm(bias, read, weight.T).add_(shift_used).clamp_(max=0)
        solution = solve(ridge.aimed_at(torch.where(sums > 0, sums, predicted) - shift_used), penalty)
        best = min(best, solution, key=_squared_error)
    return best


def _squared_error(solution: tuple[Tensor, Tensor, float, Tensor]) -> float:
    return float(solution[3].square().sum())


def fit_kernels(patches: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The least-squares kernel of each channel of a depthwise convolution.

    Args:
        patches: (R, C, K), the K inputs of each output.
        targets: (R, C), the outputs of the larger kernel.
        penalty: as in `Ridge.solve`, for each channel on its own.

    Returns:
        Kernels (C, K) and biases (C,).
    """
    mean, target_mean = patches.mean(0), targets.mean(0)
    centred = (patches - mean).permute(1, 2, 0)  # (C, K, R)
    gram = centred @ centred.transpose(1, 2)
    cross = centred @ (targets - target_mean).T[:, :, None]
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_((penalty * scale)[:, None] + TINY_VARIANCE)
    kernels = torch.linalg.solve(gram.double(), cross.double())[..., 0].to(gram.dtype)
    return kernels, target_mean - (kernels * mean).sum(1)


def match_layer(layer: ConvNormActivation, own: Moments, wanted: Moments) -> bool:
    """Give a layer, before its activation, the moments that the largest network's has.

    Without a BatchNorm, its convolution gets them (`match_conv`), also before a LayerNorm.

    Args:
        layer: changed in place; its convolution has a bias unless a BatchNorm follows.
        own: moments of the output of its convolution in the subnet.
        wanted: moments of the same channels in the largest network.

    Returns:
        Whether the convolution was changed.
    """
    if isinstance(layer.norm, nn.BatchNorm2d):
        match_norm(layer.norm, own, wanted)
        return False
    match_conv(layer.conv, own, wanted)
    return True


def match_norm(norm: nn.BatchNorm2d, own: Moments, wanted: Moments) -> None:
    """Give a BatchNorm's output the moments that the largest network's has, and the norm the statistics of its input.

    Plain recalibration gives it mean and variance of its bias and weight instead, which are only those of the largest
    network on the images that this was trained on. Compare REPAIR (Jordan et al. 2022).

    Args:
        norm: a norm with the affine parameters and running statistics of the largest network; changed in place.
        own: moments of its input in the subnet.
        wanted: moments of the same channels in the largest network.
    """
    channels = norm.num_features
    _, variance = mean_and_variance(own, channels)
    wanted_mean, wanted_variance = mean_and_variance(wanted, channels)
    running_mean, running_var = _statistics(norm)
    varied = (variance > TINY_VARIANCE) & (wanted_variance > TINY_VARIANCE)
    ratio = torch.where(varied, (wanted_variance / variance.clamp(min=TINY_VARIANCE)).sqrt(), 1.0)
    slope = norm.weight.double() / (running_var.double() + norm.eps).sqrt()
    norm.bias.add_(slope * (wanted_mean - running_mean.double()))
    norm.weight.copy_(slope * ratio * (variance + norm.eps).sqrt())
    take_statistics(norm, own)


def take_statistics(norm: nn.BatchNorm2d, own: Moments) -> None:
    """Give a BatchNorm the statistics of its input, as recalibration does."""
    mean, variance = mean_and_variance(own, norm.num_features)
    running_mean, running_var = _statistics(norm)
    running_mean.copy_(mean)
    running_var.copy_(variance)


def match_conv(conv: nn.Conv2d, own: Moments, wanted: Moments) -> None:
    """Give the output of a convolution with bias the moments (of the same channels) that the largest network's has."""
    mean, variance = mean_and_variance(own, conv.out_channels)
    wanted_mean, wanted_variance = mean_and_variance(wanted, conv.out_channels)
    varied = (variance > TINY_VARIANCE) & (wanted_variance > TINY_VARIANCE)
    ratio = torch.where(varied, (wanted_variance / variance.clamp(min=TINY_VARIANCE)).sqrt(), 1.0)
    bias: Tensor = conv.bias  # type: ignore[assignment]
    bias.copy_((bias.double() - mean) * ratio + wanted_mean)
    conv.weight.mul_(ratio[:, None, None, None].to(conv.weight.dtype))


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var  # type: ignore[return-value]


def mean_and_variance(moments: Moments, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the leading channels."""
    if moments.mean is None or moments.deviation is None:
        raise ValueError("moments need at least one batch, got none")
    return moments.mean[:channels], moments.deviation[:channels] / moments.count


def set_linear(layer: ConvNormActivation, weight: Tensor, bias: Tensor, inputs: Tensor) -> None:
    """Make a 1x1 convolution and its BatchNorm or `LayerScale` compute ``weight x + bias``.

    A BatchNorm gets the statistics of its input, so that training or recalibrating it afterwards changes little. A
    scale is kept where it is not close to 0.

    Args:
        layer: changed in place; its convolution has a bias unless a BatchNorm follows.
        weight: (O, C).
        bias: (O,).
        inputs: rows (R, C) of the convolution's input.
    """
    conv, norm = layer.conv, layer.norm
    if isinstance(norm, nn.BatchNorm2d):
        conv.weight.copy_(weight[:, :, None, None])
        variance, mean = torch.var_mean(inputs @ weight.T, 0, correction=0)
        running_mean, running_var = _statistics(norm)
        running_mean.copy_(mean)
        running_var.copy_(variance)
        norm.weight.copy_((running_var + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)
        return
    scale = torch.ones_like(bias)
    if isinstance(norm, LayerScale):
        scale = torch.where(norm.weight.abs() < SMALLEST_SCALE, 1.0, norm.weight)
        norm.weight.copy_(scale)
    conv.weight.copy_((weight / scale[:, None])[:, :, None, None])
    conv.bias.copy_(bias / scale)  # type: ignore[union-attr]


def linear_weight(layer: ConvNormActivation) -> Tensor:
    """The weight (O, C) of the linear map that a 1x1 convolution and a BatchNorm or `LayerScale` behind it compute."""
    weight, norm = layer.conv.weight[:, :, 0, 0], layer.norm
    if isinstance(norm, nn.BatchNorm2d):
        _, variance = _statistics(norm)
        return (norm.weight / (variance + norm.eps).sqrt())[:, None] * weight
    return norm.weight[:, None] * weight if isinstance(norm, LayerScale) else weight


def greedy_order(covariance: Tensor, weight: Tensor) -> Tensor:
    """Order the inputs of a linear layer so that any leading part of them explains its output best, greedily.

    Each step takes the input j that removes most of the output's variance that is left, ``|W R_j|^2 / R_jj`` with the
    covariance R of what the chosen inputs leave of all inputs, and updates R (pivoted Cholesky).

    Args:
        covariance: (C, C), of the inputs.
        weight: (O, C), of the linear layer.

    Returns:
        int64 (C,): for each new position the index of the input.
    """
    rest = covariance.double().clone()
    read = weight.double() @ rest
    smallest = rest.diagonal().mean().clamp(min=TINY_VARIANCE) * 1e-7
    taken = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
    order = []
    for _ in range(len(rest)):
        variance = rest.diagonal().clamp(min=smallest)
        chosen = int((read.square().sum(0) / variance).masked_fill(taken, -1).argmax())
        order.append(chosen)
        taken[chosen] = True
        row = rest[chosen] / variance[chosen]
        read.addr_(read[:, chosen].clone(), row, alpha=-1)
        rest.addr_(rest[:, chosen].clone(), row, alpha=-1)
    return torch.tensor(order, device=covariance.device)
