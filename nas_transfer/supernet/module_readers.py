"""Read the layers that families have in common: convolutions, norms, activations, squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from nas_transfer.supernet.readers import PublicNet, unreadable

ACTIVATIONS = {
    "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu", "Swish": "silu", "Hardswish": "hardswish",
    "HardSwish": "hardswish", "Sigmoid": "sigmoid", "Hardsigmoid": "hardsigmoid", "HardSigmoid": "hardsigmoid",
}  # fmt: skip
"""Names of activations by the names of their classes in torch and timm."""
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
SAME_PADDED = "Conv2dSame"


@dataclass(frozen=True)
class Conv:
    """A square convolution.

    Attributes:
        name: its dotted name in the network.
        in_channels, out_channels, kernel_size, stride, groups, bias: of the layer.
        same_padding: whether it pads as TensorFlow's "same" does.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    bias: bool
    same_padding: bool

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a single filter."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def pointwise(self) -> bool:
        """Whether it is a dense 1x1 convolution of stride 1."""
        return self.kernel_size == 1 and self.groups == 1 and self.stride == 1


@dataclass(frozen=True)
class Squeeze:
    """Squeeze-and-excitation.

    Attributes:
        squeeze, excite: names of the two 1x1 convolutions.
        channels: between them.
        activations: names of the activations behind them.
    """

    squeeze: str
    excite: str
    channels: int
    activations: tuple[str, str]


class ModuleReader:
    """Reads layers of one network by their dotted names, and notes the epsilon of its norms.

    Args:
        net: what the library says of the network.
        model: the network.

    Attributes:
        eps: of all BatchNorms read so far.
    """

    def __init__(self, net: PublicNet, model: nn.Module) -> None:
        self.net = net
        self.model = model
        self.eps: float | None = None

    def module(self, name: str) -> nn.Module:
        """The module of this name."""
        return self.model.get_submodule(name)

    def has(self, name: str) -> bool:
        """Whether there is a module of this name that does something."""
        module: object = self.model
        for part in name.split("."):
            module = getattr(module, part, None)
        return isinstance(module, nn.Module) and not self.is_nothing(module)

    def is_nothing(self, module: nn.Module) -> bool:
        """Whether a module does nothing in eval mode: an identity, dropout or stochastic depth."""
        kind = type(module).__name__
        empty = isinstance(module, nn.Sequential) and not len(module)
        return empty or isinstance(module, NOTHING) or kind in ("DropPath", "StochasticDepth", "DropBlock2d")

    def conv(self, name: str, *, bias: bool = False) -> Conv:
        """A convolution; ConfigError if it is not square, odd, centred, without dilation, and with or without bias."""
        module = self.module(name)
        kind = type(module).__name__
        same = kind == SAME_PADDED
        if not isinstance(module, nn.Conv2d) or (type(module) is not nn.Conv2d and not same):
            raise unreadable(self.net, name, module, "a plain convolution")
        kernel, stride = module.kernel_size[0], module.stride[0]
        centred = (
            module.padding in ((0, 0), (kernel // 2, kernel // 2)) if same else module.padding == (kernel // 2,) * 2
        )
        square = module.kernel_size == (kernel, kernel) and module.stride == (stride, stride)
        if not centred or not square or kernel % 2 == 0 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            raise unreadable(self.net, name, str(module), "a square, odd and centred convolution without dilation")
        if (module.bias is not None) != bias:
            raise unreadable(self.net, name, f"one {'without' if bias else 'with'} bias", "a convolution " + (
                "with bias" if bias else "without bias"
            ))  # fmt: skip
        return Conv(
            name, module.in_channels, module.out_channels, kernel, stride, module.groups, bias, same and stride > 1
        )

    def norm(self, name: str) -> str:
        """Check a BatchNorm; returns the name of the activation that it contains, or an empty text."""
        module = self.module(name)
        if not isinstance(module, nn.BatchNorm2d) or not module.affine or not module.track_running_stats:
            raise unreadable(self.net, name, module, "a BatchNorm with scales and statistics")
        if self.eps is not None and module.eps != self.eps:
            raise unreadable(self.net, name, f"one with epsilon {module.eps}", f"a BatchNorm with epsilon {self.eps}")
        self.eps = module.eps
        inside = [name for name, child in module.named_children() if not self.is_nothing(child)]
        return self.activation(f"{name}.{inside[0]}") if inside else ""

    def activation(self, name: str) -> str:
        """The name of an activation."""
        module = self.module(name)
        known = ACTIVATIONS.get(type(module).__name__)
        if known is None:
            raise unreadable(self.net, name, module, f"an activation such as {', '.join(sorted(set(ACTIVATIONS)))}")
        return known

    def squeeze(self, name: str) -> Squeeze:
        """Squeeze-and-excitation: two 1x1 convolutions with bias, and two activations, in order."""
        convs, activations = [], []
        for child, module in self.module(name).named_children():
            if isinstance(module, nn.Conv2d):
                convs.append(self.conv(f"{name}.{child}", bias=True))
            elif type(module).__name__ in ACTIVATIONS:
                activations.append(self.activation(f"{name}.{child}"))
            elif not (self.is_nothing(module) or isinstance(module, nn.AdaptiveAvgPool2d)):
                raise unreadable(self.net, f"{name}.{child}", module, "part of squeeze-and-excitation")
        fits = len(convs) == len(activations) == 2 and all(conv.pointwise for conv in convs)
        if (
            not fits
            or activations[1] not in ("sigmoid", "hardsigmoid")
            or convs[0].out_channels != convs[1].in_channels
        ):
            raise unreadable(self.net, name, self.module(name), "squeeze-and-excitation of two 1x1 convolutions")
        squeeze, excite = convs
        return Squeeze(squeeze.name, excite.name, squeeze.out_channels, (activations[0], activations[1]))

    def leaves(self, name: str) -> Iterator[str]:
        """The names of a module's layers in the order in which they are registered; what does nothing is left out."""
        module = self.module(name)
        if self.is_nothing(module):
            return
        if isinstance(module, nn.ModuleDict | nn.ModuleList):
            raise unreadable(self.net, name, module, "one layer, or layers in order")
        if is_squeeze(module) or isinstance(module, nn.Conv2d | nn.BatchNorm2d) or not list(module.children()):
            yield name
            return
        for child, _ in module.named_children():
            yield from self.leaves(f"{name}.{child}")


def is_squeeze(module: nn.Module) -> bool:
    """Whether a module is squeeze-and-excitation by its name: SqueezeExcite, SqueezeExcitation, SEModule."""
    kind = type(module).__name__
    return kind.startswith("SqueezeExcit") or kind == "SEModule"
