"""Read timm's and torchvision's ConvNeXts, of which only the names of their modules differ."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas_transfer.supernet.convnext.rows import HeadTable, StageTable, StemTable
from nas_transfer.supernet.convnext.table import ACTIVATIONS, PATCH, STEM_STRIDE, ConvNeXtTable
from nas_transfer.supernet.module_readers import ModuleReader
from nas_transfer.supernet.readers import PublicNet, Reading, fewer_choices, narrower_choices, unreadable
from nas_transfer.supernet.weights.layout import Layout

BATCH_NORM_EPS = 1e-5
SMALLEST_KERNEL = 3


@dataclass(frozen=True)
class BlockNames:
    """Dotted names of what is in one block; `scale` is a parameter, the others are modules."""

    depthwise: str
    norm: str
    expand: str
    activation: str
    project: str
    scale: str | None
    response_norm: str | None


@dataclass(frozen=True)
class NetNames:
    """Dotted names of the modules of a whole network.

    Attributes:
        stem: the convolutions of the stem.
        stem_activation: what is between them, or None.
        stem_norm: the LayerNorm behind them.
        downsamples: LayerNorm and convolution before each stage but the first.
        blocks: the blocks of each stage.
        head_norm: the LayerNorm of the classification head.
        norm_first: whether it reads the feature map rather than the pooled features.
        hidden: the linear layer before the classifier, or None.
        classifier: the classifier.
    """

    stem: tuple[str, ...]
    stem_activation: str | None
    stem_norm: str
    downsamples: tuple[tuple[str, str], ...]
    blocks: tuple[tuple[BlockNames, ...], ...]
    head_norm: str
    norm_first: bool
    hidden: str | None
    classifier: str


def read(model: nn.Module, net: PublicNet) -> Reading | None:
    """Read a ConvNeXt or ConvNeXtV2, see `nas_transfer.supernet.readers.Reader`."""
    names = timm_names(model, net) if net.library == "timm" else torchvision_names(model)
    if names is None:
        return None
    table = _TableReader(ModuleReader(net, model, ACTIVATIONS), names).table()
    return Reading(table, layout(table, names))


def timm_names(model: nn.Module, net: PublicNet) -> NetNames | None:
    """The names in a ConvNeXt of timm; None for another network."""
    from timm.models.convnext import ConvNeXt

    if not isinstance(model, ConvNeXt):
        return None
    stem = {f"stem.{index}": module for index, module in enumerate(model.stem)}
    convs = tuple(name for name, module in stem.items() if isinstance(module, nn.Conv2d))
    *between, norm = (name for name in stem if name not in convs)
    blocks = []
    for stage, layers in enumerate(model.stages):
        for index, block in enumerate(layers.blocks):
            if not isinstance(block.shortcut, nn.Identity):
                raise unreadable(net, f"stages.{stage}.blocks.{index}.shortcut", block.shortcut, "the identity")
        blocks.append(
            tuple(_timm_block(block, f"stages.{stage}.blocks.{index}") for index, block in enumerate(layers.blocks))
        )
    pooling = getattr(model.head.global_pool, "pool_type", "")
    if pooling != "avg":
        raise unreadable(net, "head.global_pool", f"the pooling {pooling!r}", "global average pooling")
    norm_first = not isinstance(model.norm_pre, nn.Identity)
    return NetNames(
        stem=convs,
        stem_activation=between[0] if between else None,
        stem_norm=norm,
        downsamples=tuple((f"stages.{stage}.downsample.0", f"stages.{stage}.downsample.1") for stage in (1, 2, 3)),
        blocks=tuple(blocks),
        head_norm="norm_pre" if norm_first else "head.norm",
        norm_first=norm_first,
        hidden="head.pre_logits.fc" if getattr(model.head, "hidden_size", None) else None,
        classifier="head.fc",
    )


def _timm_block(block: nn.Module, name: str) -> BlockNames:
    return BlockNames(
        depthwise=f"{name}.conv_dw",
        norm=f"{name}.norm",
        expand=f"{name}.mlp.fc1",
        activation=f"{name}.mlp.act",
        project=f"{name}.mlp.fc2",
        scale=None if block.gamma is None else f"{name}.gamma",
        response_norm=f"{name}.mlp.grn" if hasattr(block.mlp, "grn") else None,
    )


def torchvision_names(model: nn.Module) -> NetNames | None:
    """The names in a ConvNeXt of torchvision; None for another network."""
    from torchvision.models.convnext import ConvNeXt

    if not isinstance(model, ConvNeXt):
        return None
    blocks = []
    for stage in (1, 3, 5, 7):
        names = [f"features.{stage}.{index}" for index in range(len(model.features[stage]))]
        blocks.append(
            tuple(
                BlockNames(
                    depthwise=f"{name}.block.0", norm=f"{name}.block.2", expand=f"{name}.block.3",
                    activation=f"{name}.block.4", project=f"{name}.block.5", scale=f"{name}.layer_scale",
                    response_norm=None,
                )
                for name in names
            )
        )  # fmt: skip
    return NetNames(
        stem=("features.0.0",),
        stem_activation=None,
        stem_norm="features.0.1",
        downsamples=tuple((f"features.{layer}.0", f"features.{layer}.1") for layer in (2, 4, 6)),
        blocks=tuple(blocks),
        head_norm="classifier.0",
        norm_first=False,
        hidden=None,
        classifier="classifier.2",
    )


class _TableReader:
    """Reads the table of a network, and refuses modules that a table cannot express."""

    def __init__(self, reader: ModuleReader, names: NetNames) -> None:
        self.reader, self.net, self.names = reader, reader.net, names
        first = names.blocks[0][0]
        self.scaled, self.response_norm = first.scale is not None, first.response_norm is not None
        self.activation = reader.activation(first.activation)

    def table(self) -> ConvNeXtTable:
        """The table of the network."""
        names, reader = self.names, self.reader
        stages = tuple(self._stage(index, blocks) for index, blocks in enumerate(names.blocks))
        for index, (norm, conv) in enumerate(names.downsamples, start=1):
            reader.layer_norm(norm)
            self._conv(conv, stages[index - 1].channels, stages[index].channels, 2, 2)
        reader.layer_norm(names.head_norm)
        hidden = None if names.hidden is None else reader.linear(names.hidden)[1]
        reader.linear(names.classifier)
        stem = self._stem(stages[0].channels)
        assert reader.eps is not None
        return ConvNeXtTable(
            name=self.net.name,
            resolutions=self.net.resolutions,
            stages=stages,
            batch_norm_eps=BATCH_NORM_EPS,
            preprocessing=self.net.preprocessing,
            stem=stem,
            head=HeadTable(names.norm_first, hidden),
            layer_norm_eps=reader.eps,
            layer_scale=self.scaled,
            response_norm=self.response_norm,
            activation=self.activation,
            source=self.net,
        )

    def _stem(self, width: int) -> StemTable:
        self.reader.layer_norm(self.names.stem_norm)
        first, *others = self.names.stem
        if not others:
            self._conv(first, 3, width, PATCH, STEM_STRIDE)
            return StemTable()
        mid = self.reader.conv(first, bias=True).out_channels
        self._conv(first, 3, mid, 3, 2)
        self._conv(others[0], mid, width, 3, 2)
        activation = self.names.stem_activation
        if activation is not None:
            self.reader.activation(activation, (self.activation,))
        return StemTable(mid, activation is not None)

    def _stage(self, index: int, blocks: tuple[BlockNames, ...]) -> StageTable:
        first = self.reader.module(blocks[0].depthwise)
        if not isinstance(first, nn.Conv2d):
            raise unreadable(self.net, blocks[0].depthwise, first, "a convolution")
        channels, kernel_size = first.out_channels, first.kernel_size[0]
        ratio = self.reader.linear(blocks[0].expand)[1] // channels
        for block in blocks:
            self._conv(block.depthwise, channels, channels, kernel_size, 1, groups=channels)
            self.reader.layer_norm(block.norm)
            self._linear(block.expand, (channels, ratio * channels))
            self._linear(block.project, (ratio * channels, channels))
            self.reader.activation(block.activation, (self.activation,))
            if (block.scale is not None, block.response_norm is not None) != (self.scaled, self.response_norm):
                raise unreadable(self.net, block.depthwise.rpartition(".")[0], "another one", "a block as the others")
        return StageTable(
            name=f"s{index + 1}",
            width=(channels,),
            depth=fewer_choices(len(blocks)),
            kernel_size=tuple(range(min(SMALLEST_KERNEL, kernel_size), kernel_size + 1, 2)),
            expand_ratio=narrower_choices(ratio),
        )

    def _conv(self, name: str, inside: int, outside: int, kernel_size: int, stride: int, groups: int = 1) -> None:
        needed = (
            f"a {kernel_size}x{kernel_size} convolution of stride {stride} with a bias, from {inside} to {outside} "
            f"channels in {groups} groups"
        )
        conv = self.reader.conv(name, bias=True, needed=needed)
        found = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.groups)
        if found != (inside, outside, kernel_size, stride, groups) or conv.same_padding:
            raise unreadable(self.net, name, str(self.reader.module(name)), needed)

    def _linear(self, name: str, wanted: tuple[int, int]) -> None:
        if self.reader.linear(name) != wanted:
            needed = f"a linear layer with a bias from {wanted[0]} to {wanted[1]} channels"
            raise unreadable(self.net, name, str(self.reader.module(name)), needed)


def layout(table: ConvNeXtTable, names: NetNames) -> Layout:
    """Map the tensors of the table's supernet to those of the public network; LayerNorms have no statistics."""
    mapping = Layout()

    def both(target: str, source: str) -> None:
        mapping.conv(target, source, bias=True)

    targets = ("last",) if table.stem.mid_width is None else ("first", "last")
    for target, source in zip(targets, names.stem, strict=True):
        both(f"body.stem.{target}.conv", source)
    both("body.stem.last.norm", names.stem_norm)
    for index, (norm, conv) in enumerate(names.downsamples, start=1):
        both(f"body.downsamples.{index}.norm", norm)
        both(f"body.downsamples.{index}.conv", conv)
    for stage, blocks in enumerate(names.blocks):
        for index, block in enumerate(blocks):
            target = f"body.stages.{stage}.{index}"
            both(f"{target}.depthwise.conv", block.depthwise)
            both(f"{target}.depthwise.norm", block.norm)
            both(f"{target}.expand.conv", block.expand)
            both(f"{target}.project.conv", block.project)
            if block.response_norm is not None:
                both(f"{target}.response_norm", block.response_norm)
            if block.scale is not None:
                mapping.sources[f"{target}.project.norm.weight"] = block.scale
    both("head.norm", names.head_norm)
    if names.hidden is not None:
        both("head.hidden", names.hidden)
    both("head.classifier", names.classifier)
    return mapping
