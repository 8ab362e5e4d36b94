"""Read the layers that families have in common: convolutions, norms, activations, squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import nn

from nas_transfer.supernet.fields import GATES, INNER_ACTIVATIONS
from nas_transfer.supernet.readers import PublicNet, unreadable

ACTIVATIONS = {
    "GELU": "gelu", "GELUTanh": "gelu_tanh",
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
        in_channels, out_channels, kernel_size, stride, groups, bias: of the layer; an even kernel is as large as the
            stride and not padded.
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
        activations: names of the activations that the family's table can express.

    Attributes:
        eps: of all norms read so far.
    """

    def __init__(self, net: PublicNet, model: nn.Module, activations: Collection[str]) -> None:
        self.net = net
        self.model = model
        self.activations = activations
        self.eps: float | None = None

    def module(self, name: str) -> nn.Module:
        """The module of this name; ConfigError if there is none."""
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            raise unreadable(self.net, name, "none", "a module") from None

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

    def conv(self, name: str, *, bias: bool = False, needed: str = "") -> Conv:
        """A convolution.

        Args:
            name: its dotted name.
            bias: whether it must have a bias, or must have none.
            needed: what the family can express in its place, for the error; by default, it follows from what is wrong.

        Raises:
            ConfigError: it is not square, not centred (or, with an even kernel, not of patches that do not overlap), or
                dilated.
        """
        module = self.module(name)
        kind = type(module).__name__
        same = kind == SAME_PADDED
        if not isinstance(module, nn.Conv2d) or (type(module) is not nn.Conv2d and not same):
            raise unreadable(self.net, name, module, needed or "a plain convolution")
        kernel, stride = module.kernel_size[0], module.stride[0]
        centred = module.padding == (kernel // 2, kernel // 2) or (same and module.padding == (0, 0))
        if kernel % 2 == 0:
            centred = kernel == stride and module.padding == (0, 0) and not same
        square = module.kernel_size == (kernel, kernel) and module.stride == (stride, stride)
        if not centred or not square or module.dilation != (1, 1) or module.padding_mode != "zeros":
            usual = "a square, odd and centred convolution without dilation"
            raise unreadable(self.net, name, str(module), needed or usual)
        if (module.bias is not None) != bias:
            found, usual = ("without", "with") if bias else ("with", "without")
            raise unreadable(self.net, name, f"one {found} bias", needed or f"a convolution {usual} bias")
        return Conv(
            name, module.in_channels, module.out_channels, kernel, stride, module.groups, bias, same and stride > 1
        )

    def norm(self, name: str) -> str:
        """Check a BatchNorm; returns the name of the activation that it contains, or an empty text."""
        module = self.module(name)
        if not isinstance(module, nn.BatchNorm2d) or not module.affine or not module.track_running_stats:
            raise unreadable(self.net, name, module, "a BatchNorm with scales and statistics")
        self._note_eps(name, module.eps)
        inside = [name for name, child in module.named_children() if not self.is_nothing(child)]
        return self.activation(f"{name}.{inside[0]}") if inside else ""

    def layer_norm(self, name: str) -> int:
        """The channels of a LayerNorm over channels."""
        module = self.module(name)
        if not isinstance(module, nn.LayerNorm):
            raise unreadable(self.net, name, module, "a LayerNorm")
        if not module.elementwise_affine or len(module.normalized_shape) != 1:
            raise unreadable(self.net, name, str(module), "a LayerNorm of channels with scales and shifts")
        self._note_eps(name, module.eps)
        return module.normalized_shape[0]

    def _note_eps(self, name: str, eps: float) -> None:
        if self.eps is not None and eps != self.eps:
            raise unreadable(self.net, name, f"one with epsilon {eps}", f"a norm with epsilon {self.eps}")
        self.eps = eps

    def linear(self, name: str) -> tuple[int, int]:
        """Input and output channels of a linear layer with bias, or of a 1x1 convolution with bias."""
        module = self.module(name)
        if isinstance(module, nn.Conv2d):
            conv = self.conv(name, bias=True)
            if conv.pointwise:
                return conv.in_channels, conv.out_channels
        if not isinstance(module, nn.Linear):
            raise unreadable(self.net, name, module, "a linear layer")
        if module.bias is None:
            raise unreadable(self.net, name, "one without", "a linear layer with a bias")
        return module.in_features, module.out_features

    def activation(self, name: str, among: Collection[str] | None = None) -> str:
        """The name of an activation; ConfigError if it is not `among` these, by default those of the family."""
        module, among = self.module(name), self.activations if among is None else among
        found = ACTIVATIONS.get(type(module).__name__)
        if found == "gelu" and getattr(module, "approximate", "none") == "tanh":
            found = "gelu_tanh"
        if found is None or found not in among:
            kinds = [kind for kind, known in ACTIVATIONS.items() if known in among]
            raise unreadable(self.net, name, module, f"one of {', '.join(kinds)}" if len(kinds) > 1 else kinds[0])
        return found

    def squeeze(self, name: str) -> Squeeze:
        """Squeeze-and-excitation: two 1x1 convolutions with bias, and two activations, in order."""
        convs: list[Conv] = []
        activations: list[str] = []
        for child, module in self.module(name).named_children():
            if isinstance(module, nn.Conv2d):
                convs.append(self.conv(f"{name}.{child}", bias=True))
            elif type(module).__name__ in ACTIVATIONS:
                activations.append(self.activation(f"{name}.{child}", GATES if activations else INNER_ACTIVATIONS))
            elif not (self.is_nothing(module) or isinstance(module, nn.AdaptiveAvgPool2d)):
                raise unreadable(self.net, f"{name}.{child}", module, "part of squeeze-and-excitation")
        fits = len(convs) == len(activations) == 2 and all(conv.pointwise for conv in convs)
        if not fits or convs[0].out_channels != convs[1].in_channels:
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
