"""Elastic layers: one weight tensor that holds the weights of every narrower layer as its leading slice.

An elastic layer reads its input width from the tensor that it is given; only its output width and kernel size are set.
A smaller kernel is the centre crop of the larger one (AttentiveNAS, Wang et al. 2021, section 3), or a learned linear
map of that crop (once-for-all, Cai et al. 2020, section 3.3). A slice is a view, except for a convolution, which gets a
dense copy: it would otherwise make one in the forward and another in the backward pass. Every subnet is extracted with
`copy_slices`, which writes the active slices into a plain static module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_DIMENSIONS = (2, 3)


class ElasticConv2d(nn.Conv2d):
    """A 2-D convolution whose input and output width and kernel size can shrink.

    The supernet sets `active_out_channels` and `active_kernel_size`, which start at the largest values.

    Args:
        in_channels: the largest input width; the active one is that of the input tensor.
        out_channels: the largest output width. The output width of a depthwise convolution is its input width.
        kernel_size: the largest kernel size, odd; the padding is half of the active one.
        stride: stride of the convolution.
        depthwise: whether each channel has a single filter.
        dilation: distance between the kernel's samples; the padding is half of the dilated kernel.
        bias: whether there is a bias for each output channel.
        same_padding: whether to pad as TensorFlow's "same" does (`pad_same`) instead.
        transformed_sizes: smaller kernel sizes, each a learned linear map of the centre of the next larger kernel. The
            map is shared by all channels and starts as the identity.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, *,
        depthwise: bool = False, dilation: int = 1, bias: bool = False, same_padding: bool = False,
        transformed_sizes: Sequence[int] = (),
    ) -> None:  # fmt: skip
        groups = in_channels if depthwise else 1
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.depthwise = depthwise
        self.same_padding = same_padding
        self.active_out_channels = out_channels
        self.active_kernel_size = kernel_size
        self.kernel_transforms = nn.ParameterDict({str(size): torch.eye(size**2) for size in transformed_sizes})

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, active out, ceil(H / stride), ceil(W / stride))."""
        in_channels = features.shape[1]
        kernel_size = self.active_kernel_size
        out_channels = in_channels if self.depthwise else self.active_out_channels
        shape = (out_channels, 1 if self.depthwise else in_channels, kernel_size, kernel_size)
        weight = self.weight_of(shape)
        bias = None if self.bias is None else shared_slice(self.bias, (out_channels,))
        groups = in_channels if self.depthwise else 1
        padding = self.dilation[0] * (kernel_size // 2)
        if self.same_padding:
            features, padding = pad_same(features, kernel_size, self.stride[0]), 0
        return F.conv2d(features, weight, bias, self.stride, padding, self.dilation, groups)

    def weight_of(self, shape: tuple[int, ...]) -> Tensor:
        """The weight (out, in, k, k) of the active layer: leading channels, centre-cropped or transformed kernel."""
        size = shape[-1]
        if size == self.kernel_size[0] or not self.kernel_transforms:
            return shared_kernel(self.weight, shape)
        smaller = sorted((step for step in map(int, self.kernel_transforms) if step >= size), reverse=True)
        if not smaller:
            return shared_kernel(self.weight, shape)
        kernel = shared_slice(self.weight, (*shape[:2], smaller[0], smaller[0]))
        for step in smaller:
            centre = leading_slice(kernel, (*shape[:2], step, step), "a kernel")
            kernel = F.linear(centre.flatten(2), self.kernel_transforms[str(step)]).view(*shape[:2], step, step)
        return kernel

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """How `copy_slices` cuts tensors, by name, that are more than a leading slice and a centre crop."""
        return {"weight": self.weight_of} if self.kernel_transforms else {}


class GroupedConv2d(ElasticConv2d):
    """An elastic convolution whose groups keep their width; it has as many leading groups as its input fills.

    Args:
        channels: the largest input and output width.
        group_width: input and output channels of a group.
        kernel_size, stride: as in `ElasticConv2d`.
    """

    def __init__(self, channels: int, group_width: int, kernel_size: int, stride: int) -> None:
        nn.Conv2d.__init__(
            self, channels, channels, kernel_size, stride, kernel_size // 2, groups=channels // group_width, bias=False
        )
        self.group_width = group_width
        self.active_out_channels = channels
        self.active_kernel_size = kernel_size
        self.kernel_transforms = nn.ParameterDict()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)); C is a multiple of the group width."""
        channels = features.shape[1]
        weight = shared_kernel(self.weight, (channels, *self.weight.shape[1:]))
        return F.conv2d(features, weight, None, self.stride, self.padding, 1, channels // self.group_width)


class SamePaddingConv2d(nn.Conv2d):
    """A plain convolution without dilation that pads as TensorFlow's "same" does (`pad_same`).

    Set `whole_strides` if H and W are always multiples of the stride: the padding is then the same for all sizes, which
    an exported graph needs.
    """

    whole_strides = False

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H / stride), ceil(W / stride))."""
        if self.whole_strides:
            total = self.kernel_size[0] - self.stride[0]
            features = F.pad(features, 2 * [total // 2, total - total // 2])
            return F.conv2d(features, self.weight, self.bias, self.stride, 0, 1, self.groups)
        features = pad_same(features, self.kernel_size[0], self.stride[0])
        return F.conv2d(features, self.weight, self.bias, self.stride, 0, 1, self.groups)


def pad_same(features: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Pad (B, C, H, W) with zeros to an output of ceil(n / stride), an odd zero at the end: TensorFlow's "same"."""
    pads = []
    for size in (features.shape[3], features.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(features, pads)


class ElasticConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose input and output width can shrink; the output width is `active_out_channels`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0, *, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.active_out_channels = out_channels

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, in, H, W) to (B, active out, H', W') with the leading filters."""
        out_channels = self.active_out_channels
        weight = shared_kernel(self.weight, (features.shape[1], out_channels, *self.weight.shape[2:]))
        bias = None if self.bias is None else shared_slice(self.bias, (out_channels,))
        return F.conv_transpose2d(features, weight, bias, self.stride, self.padding)


class ElasticLinear(nn.Linear):
    """A linear layer with bias whose input and output width can shrink; the latter is `active_out_features`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.active_out_features = out_features

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., in) to (..., active out) with the leading rows and columns of the weight."""
        weight = shared_slice(self.weight, (self.active_out_features, features.shape[-1]))
        return F.linear(features, weight, shared_slice(self.bias, (self.active_out_features,)))

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """How `copy_slices` cuts tensors, by name, that are more than a leading slice."""
        return {}


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the leading channels that does not update its running statistics in training.

    The statistics of one width are meaningless for another (BigNAS, Yu et al. 2020, section 3.2). Usable statistics
    come from imported weights or from `nas_transfer.supernet.calibrate` on an extracted subnet.

    If `synchronised` is set, training normalises with the moments over the images of all ranks, on any device. The
    stock SyncBatchNorm refuses CPU tensors, and converting modules to it would replace this class.
    """

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__(num_features, eps=eps)
        self.synchronised = False

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W) per channel."""
        channels = features.shape[1]
        weight, bias = self.scale_and_shift(channels)
        if not self.training:
            mean, var = self.running_mean, self.running_var
            if mean is None or var is None:
                raise RuntimeError("an elastic BatchNorm always holds running statistics")
            mean, var = self.part_of(mean, channels), self.part_of(var, channels)
            return F.batch_norm(features, mean, var, weight, bias, False, 0.0, self.eps)
        if self.synchronised and distributed.is_initialized() and distributed.get_world_size() > 1:
            return _synchronised_batch_norm(features, weight, bias, self.eps)
        return F.batch_norm(features, None, None, weight, bias, True, 0.0, self.eps)

    def scale_and_shift(self, channels: int) -> tuple[Tensor, Tensor]:
        """The weight and the bias (channels,) of the active channels."""
        return shared_pair(self.weight, self.bias, channels)

    def part_of(self, tensor: Tensor, channels: int) -> Tensor:
        """The values (channels,) of the active channels."""
        return shared_slice(tensor, (channels,))

    def cuts(self) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
        """How `copy_slices` cuts tensors, by name, that are more than a leading slice."""
        return {}


class ElasticGroupNorm(nn.GroupNorm):
    """GroupNorm over the leading groups, each of which keeps its channels."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W) per image and group; C is a multiple of the channels in a group."""
        channels = features.shape[1]
        groups = channels * self.num_groups // self.num_channels
        weight, bias = shared_pair(self.weight, self.bias, channels)
        return F.group_norm(features, groups, weight, bias, self.eps)


def _synchronised_batch_norm(features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise with the moments over all ranks, E[x] and E[(x - E[x])^2], one differentiable all-reduce for each."""
    from torch.distributed.nn.functional import all_reduce

    count = torch.tensor([features.numel() / features.shape[1]], dtype=features.dtype, device=features.device)
    sums = all_reduce(torch.cat([features.sum((0, 2, 3)), count]))
    mean = (sums[:-1] / sums[-1])[None, :, None, None]
    centred = features - mean
    variance = (all_reduce(centred.square().sum((0, 2, 3))) / sums[-1])[None, :, None, None]
    return centred * torch.rsqrt(variance + eps) * weight[None, :, None, None] + bias[None, :, None, None]


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018), by default with ReLU and hard sigmoid, as in MobileNetV3.

    Args:
        squeeze: 1x1 convolution with bias that reduces the channels.
        excite: 1x1 convolution with bias that restores them.
        activation: one of `nas_transfer.supernet.fields.INNER_ACTIVATIONS`, behind `squeeze`.
        gate: one of `nas_transfer.supernet.fields.GATES`, behind `excite`.
    """

    def __init__(
        self, squeeze: nn.Conv2d, excite: nn.Conv2d, activation: str = "relu", gate: str = "hardsigmoid"
    ) -> None:
        super().__init__()
        self.squeeze = squeeze
        self.excite = excite
        self.activate: Callable[[Tensor], Tensor] = getattr(F, activation)
        self.gate: Callable[[Tensor], Tensor] = getattr(F, gate)

    def forward(self, features: Tensor) -> Tensor:
        """Scale each channel of (B, C, H, W) by a factor in 0-1 that depends on the whole image."""
        pooled = features.mean((2, 3), keepdim=True)
        return features * self.gate(self.excite(self.activate(self.squeeze(pooled))))


def copy_slices(source: nn.Module, target: nn.Module) -> None:
    """Fill the parameters and buffers of a subnet, `target`, with its slices of the supernet `source`.

    Tensors are matched by name. Channel dimensions take the leading slice and kernel dimensions the centre crop, unless
    a layer of `source` cuts its tensors in another way (``cuts``), such as by its kernel transforms.

    Raises:
        KeyError: `target` has a tensor that `source` lacks.
        ValueError: a tensor of `target` is larger than that of `source`.
    """
    tensors = source.state_dict(keep_vars=True)
    cuts = {
        f"{name}.{key}": cut
        for name, module in source.named_modules()
        if isinstance(module, ElasticConv2d | ElasticBatchNorm2d | ElasticLinear)
        for key, cut in module.cuts().items()
    }
    with torch.no_grad():
        for name, tensor in target.state_dict(keep_vars=True).items():
            if name in cuts and tensor.shape != tensors[name].shape:
                tensor.copy_(cuts[name](tuple(tensor.shape)))
            else:
                tensor.copy_(leading_slice(tensors[name], tensor.shape, name))


class _SharedSlice(torch.autograd.Function):
    """A slice of a parameter whose gradient is added to the same slice of ``parameter.grad``.

    The slices of autograd fill and add a tensor of the size of the whole parameter for each dimension that is cut, in
    each backward pass, which takes about a tenth of the time of a sandwich step.
    """

    @staticmethod
    def forward(context: Any, parameter: Tensor, shape: tuple[int, ...], dense: bool) -> Tensor:
        context.parameter = parameter
        part = leading_slice(parameter, shape, "a shared parameter")
        return densified(part) if dense else part

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        add_to_slice(context.parameter, gradient)
        return None, None, None


class _SharedPair(torch.autograd.Function):
    """The leading elements of two parameters (C,): one call of Python instead of two in each direction."""

    @staticmethod
    def forward(context: Any, one: Tensor, other: Tensor, count: int) -> tuple[Tensor, Tensor]:
        context.parameters = (one, other)
        return one.narrow(0, 0, count), other.narrow(0, 0, count)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        for parameter, gradient in zip(context.parameters, gradients, strict=True):
            add_to_slice(parameter, gradient)
        return None, None, None


def add_to_slice(parameter: Tensor, gradient: Tensor) -> None:
    """Add a gradient to the slice of its shape of ``parameter.grad``, which is made if there is none."""
    whole = parameter.grad
    if whole is None:
        parameter.grad = whole = torch.zeros_like(parameter)
    leading_slice(whole, gradient.shape, "a shared gradient").add_(gradient)


def densified(part: Tensor) -> Tensor:
    """A slice without gaps in memory, in the order of dimensions of the parameter, such as channels_last."""
    return part if part.is_contiguous() or part.is_contiguous(memory_format=torch.channels_last) else part.clone()


def shared_slice(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The part of a parameter that the active subnet uses, as a view: leading channels, centre-cropped kernel.

    The gradient of a leaf is added to ``.grad`` directly. It bypasses hooks on the parameter and `torch.autograd.grad`,
    so the gradients of all ranks must be reduced explicitly, once for each step.
    """
    if parameter.shape == shape:
        return parameter
    if _is_trained(parameter):
        return _SharedSlice.apply(parameter, shape, False)
    return leading_slice(parameter, shape, "a shared parameter")


def shared_kernel(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same part of the weight (out, in, k, k) of a convolution without gaps in memory."""
    if parameter.shape == shape:
        return parameter
    if _is_trained(parameter):
        return _SharedSlice.apply(parameter, shape, True)
    return densified(leading_slice(parameter, shape, "a shared parameter"))


def shared_pair(one: Tensor, other: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`shared_slice` of two parameters (C,) with the first `count` elements."""
    if one.shape[0] > count and _is_trained(one) and _is_trained(other):
        return _SharedPair.apply(one, other, count)
    return shared_slice(one, (count,)), shared_slice(other, (count,))


def _is_trained(parameter: Tensor) -> bool:
    return parameter.requires_grad and parameter.is_leaf and torch.is_grad_enabled()


def leading_slice(tensor: Tensor, shape: torch.Size | tuple[int, ...], name: str) -> Tensor:
    """A view of `tensor` with this shape: leading channels, centre-cropped kernel.

    Raises:
        ValueError: `tensor` is too small; the message names it.
    """
    have = tensor.shape
    if len(have) != len(shape):
        raise ValueError(_too_small(name, shape, have))
    for dimension, size in enumerate(shape):
        spare = have[dimension] - size
        if spare < 0:
            raise ValueError(_too_small(name, shape, have))
        if spare:
            tensor = tensor.narrow(dimension, spare // 2 if dimension in KERNEL_DIMENSIONS else 0, size)
    return tensor


def _too_small(name: str, wanted: Sequence[int], have: Sequence[int]) -> str:
    return f"'{name}' must hold a slice of shape {tuple(wanted)}, got shape {tuple(have)}"
