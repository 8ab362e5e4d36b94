"""How a public checkpoint's tensors map to a supernet's, and the import itself: every tensor is used or named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nas_transfer.errors import WeightsError
from nas_transfer.space import Arch
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable

NUM_CLASSES = 1000
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
COUNTER = "num_batches_tracked"
KERNEL_TRANSFORM = ".kernel_transforms."


@dataclass
class Layout:
    """Where the tensors of a supernet are in a file.

    Attributes:
        sources: name in the file by name in the supernet, ``body.`` or ``head.`` in front.
        ignored: reason by the name of a tensor of the file that is not used.
    """

    sources: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def norm(self, target: str, source: str) -> None:
        """A BatchNorm."""
        self.sources |= {f"{target}.{name}": f"{source}.{name}" for name in NORM_TENSORS}

    def conv(self, target: str, source: str, *, bias: bool = False) -> None:
        """A convolution or a linear layer."""
        self.sources |= {f"{target}.{name}": f"{source}.{name}" for name in ("weight", "bias")[: 1 + bias]}

    def conv_norm(self, target: str, conv: str, norm: str, *, bias: bool = False) -> None:
        """A `ConvNormActivation`."""
        self.conv(f"{target}.conv", conv, bias=bias)
        self.norm(f"{target}.norm", norm)


@dataclass(frozen=True)
class Origin:
    """What is known of a public checkpoint's weights.

    Attributes:
        name: of the layout, ``weights_format``'s value.
        preprocessing: that they were trained with.
        licence: under which they are given.
        one_net: whether they are one net's, whose BatchNorm statistics are right for the largest arch.
    """

    name: str
    preprocessing: Preprocessing
    licence: str
    one_net: bool = False


def torchvision_origin(name: str) -> Origin:
    """That of torchvision's classification nets."""
    return Origin(
        name,
        preprocessing=Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), interpolation="bilinear"),
        licence="BSD-3-Clause (torchvision), trained on ImageNet, whose images are for research",
        one_net=True,
    )


@dataclass(frozen=True)
class Imported:
    """Public weights as a supernet's.

    Attributes:
        origin: what is known of them.
        body: tensors of ``table.build_body()`` by name.
        head: tensors of ``table.build_classifier(1000)`` by name.
        num_classes: rows of the classifier.
        calibrated: the arch whose BatchNorm statistics are right, None if no arch's are.
        ignored: reason by the name of a tensor that was not used.
    """

    origin: Origin
    body: dict[str, Tensor]
    head: dict[str, Tensor]
    num_classes: int
    calibrated: Arch | None
    ignored: dict[str, str]


def fill_supernet(
    state: Mapping[str, Tensor], layout: Layout, table: SupernetTable, origin: Origin, path: Path
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A supernet's body and classification head with the tensors of a file.

    Raises:
        WeightsError: a tensor that is missing, has another shape, or is neither used nor ignored, or another number of
            classes; the message names it.
    """
    body, head = table.build_body(), table.build_classifier(NUM_CLASSES)
    targets = {f"body.{name}": tensor for name, tensor in body.state_dict(keep_vars=True).items()}
    targets |= {f"head.{name}": tensor for name, tensor in head.state_dict(keep_vars=True).items()}
    unknown = sorted(set(layout.sources) - set(targets))
    if unknown:
        raise _misfit(table, origin, path, f"a tensor for '{unknown[0]}'", "a supernet without it")
    with torch.no_grad():
        for name, target in targets.items():
            source = layout.sources.get(name)
            if source is None and KERNEL_TRANSFORM in name:
                continue  # one net has none: they start as the larger kernel's centre
            tensor = None if source is None else state.get(source)
            if tensor is None:
                if name.endswith(COUNTER) and source is not None:
                    continue  # files older than torch 0.4.1 have no such counters
                raise _misfit(table, origin, path, f"the tensor '{source or name}'", "none")
            if tensor.dim() == 2 and target.shape[2:] == (1, 1):
                tensor = tensor[:, :, None, None]  # a linear layer is a 1x1 convolution of pooled features
            if tensor.shape != target.shape:
                if name.startswith("head.") and tensor.shape[1:] == target.shape[1:] and len(target) == NUM_CLASSES:
                    raise WeightsError(
                        f"expected a classifier of {NUM_CLASSES} ImageNet classes in {path}, got {len(tensor)} in "
                        f"'{source}': save the file without the other rows (TensorFlow's first one is background)"
                    )
                shapes = f"'{source}' of shape {tuple(target.shape)}", f"{tuple(tensor.shape)}"
                raise _misfit(table, origin, path, *shapes)
            target.copy_(tensor)
    unused = sorted(set(state) - set(layout.sources.values()) - set(layout.ignored))
    if unused:
        raise _misfit(table, origin, path, "only tensors that it has a place for", f"'{unused[0]}'")
    return body, head


def _misfit(table: SupernetTable, origin: Origin, path: Path, expected: str, got: str) -> WeightsError:
    return WeightsError(
        f"expected {expected} for the supernet '{table.name}' in {path}, got {got}: the file has the layout "
        f"{origin.name} but is of another space, so choose its supernet=..."
    )
