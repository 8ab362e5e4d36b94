"""Narrow the neck and the heads of a trained Faster or Mask R-CNN without training.

Nothing but linear layers lies between the merged maps of an FPN and those that read its levels. The maps are rotated to
their principal axes, which changes nothing for the largest detector: rows and columns of the layers around them rotate
along. Leading channels then carry most of the variance (Jaderberg et al. 2014 approximate filters in this way). Hidden
channels of RPN and box head, which pass a ReLU, are reordered instead (`nas_transfer.supernet.regression.greedy_order`)
and the layers that read them are refitted for each subnet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from nas_transfer.supernet.activations import HELD_OUT
from nas_transfer.supernet.regression import fit, greedy_order
from nas_transfer.tasks.head_repair import Batch, HeadRepair, RepairedTask, Views, resized_batches

IMAGES = 128
"""Views on which neck and heads are repaired."""
POSITIONS = 64
"""Positions of each level and image at which the RPN is refitted, at most."""
BOXES = 32
"""Proposals of each image on which the box head is refitted, at most."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class _Seen:
    """What the heads of a detector compute at chosen positions and boxes, as rows.

    Attributes:
        levels: for each level of the pyramid, finest first, hidden channels (R, C) of the RPN.
        boxes: hidden channels (R', H) of both layers of the box head.
    """

    levels: list[Tensor]
    boxes: tuple[Tensor, Tensor]


class _Probe:
    """The positions and boxes at which the heads of detectors are compared, those of the whole network.

    Args:
        whole: the whole network at one input size.
        images: as the body takes them.
    """

    def __init__(self, whole: RepairedTask, images: Sequence[Tensor]) -> None:
        self.images = list(_first(images, IMAGES))
        self.maps = [whole.body(batch) for batch in self.images]
        self._proposals = [_proposals(whole.network, *pair) for pair in zip(self.images, self.maps, strict=True)]
        self._levels = len(_pyramid(whole.network, self.maps[0]))

    def look(self, network: FasterRCNN, maps: Sequence[Sequence[Tensor]]) -> _Seen:
        """Run pyramid and heads of a detector on the maps of its body for each batch."""
        levels: list[list[Tensor]] = []
        boxes: list[tuple[Tensor, Tensor]] = []
        for number, (images, of_body, proposals) in enumerate(zip(self.images, maps, self._proposals, strict=True)):
            pyramid = _pyramid(network, of_body)
            skipped = self._levels - len(pyramid)
            hidden = [network.rpn.head.conv(level) for level in pyramid.values()]
            rows = [_at_random(level, number, skipped + index) for index, level in enumerate(hidden)]
            levels = levels or [[] for _ in rows]
            for collected, found in zip(levels, rows, strict=True):
                collected.append(found)
            boxes.append(_box_rows(network, pyramid, proposals, images))
        first, second = (torch.cat(rows) for rows in zip(*boxes, strict=True))
        return _Seen([torch.cat(rows) for rows in levels], (first, second))


class DetectorRepair(HeadRepair):
    """Refits the heads of a detector to what those of the whole network compute on the same images and proposals.

    Args:
        whole: the whole network at one input size.
        views: the images.
    """

    def __init__(self, whole: RepairedTask, views: Views) -> None:
        self.probe = _Probe(whole, views.images)
        seen = self.probe.look(whole.network, self.probe.maps)
        self._laterals = [
            torch.cat([_at_random(lateral(maps[index]), number, index) for number, maps in enumerate(self.probe.maps)])
            for index, lateral in enumerate(whole.network.backbone.neck.inner_blocks)
        ]
        self.probe.maps = []
        first, second = seen.boxes
        layer = whole.network.roi_heads.box_head.fc7
        self._rpn_outputs = [_linear(rows, _rpn_readers(whole.network)) for rows in seen.levels]
        self._second = F.linear(first, layer.weight, layer.bias)
        self.box_outputs = _linear(second, _box_readers(whole.network))

    @staticmethod
    def order(supernet: RepairedTask, views: Views) -> None:
        """Rotate the pyramid to its principal axes, and reorder the hidden channels of the heads."""
        largest = supernet.space.largest()
        shared = supernet.network_of(largest)
        whole = supernet.extract(largest)
        maps = [whole.body(images) for images in _first(views.images, IMAGES)]
        _rotate_merged(shared, _axes(_moments([_merged(whole.network, batch) for batch in maps])))
        network = supernet.extract(largest).network
        _rotate_levels(shared, _axes(_moments([list(_pyramid(network, batch).values()) for batch in maps])))
        whole = supernet.extract(largest)
        probe = _Probe(whole, views.images)
        _reorder(shared, probe.look(whole.network, probe.maps))

    def error(self, whole: RepairedTask, subnet: RepairedTask, batches: Sequence[Batch]) -> float:
        """The squared error of classes and boxes on proposals of the whole network, relative to their variance.

        A subnet at another input size gets the proposals at its own scale; otherwise as in `HeadRepair`.
        """
        wanted_rows, found_rows = [], []
        for large, small in zip(resized_batches(whole, batches), resized_batches(subnet, batches), strict=True):
            maps = whole.body(large.images)
            proposals = _proposals(whole.network, large.images, maps)
            wanted_rows.append(_box_outputs(whole.network, large.images, maps, proposals))
            scaled = [boxes * scale.repeat(2) for boxes, scale in zip(proposals, large.scales_to(small), strict=True)]
            found_rows.append(_box_outputs(subnet.network, small.images, subnet.body(small.images), scaled))
        wanted, found = torch.cat(wanted_rows), torch.cat(found_rows)
        variance = (wanted - wanted.mean(0)).square().sum().clamp(min=1e-30)
        return float((found - wanted).square().sum() / variance)

    def repair(self, subnet: RepairedTask) -> None:
        """Refit what reads the maps of the body and the hidden channels of RPN and box head, from the front."""
        network = subnet.network
        maps = [subnet.body(images) for images in self.probe.images]
        neck = network.backbone.neck
        for index, wanted in list(enumerate(self._laterals))[neck.finest :]:
            rows = torch.cat([_at_random(batch[index], number, index) for number, batch in enumerate(maps)])
            _refit([neck.inner_blocks[index][0]], rows, wanted[:, : network.backbone.out_channels], _held(rows))
        seen = self.probe.look(network, maps)
        wanted = self._rpn_outputs[len(self._rpn_outputs) - len(seen.levels) :]
        held = torch.cat([_held(rows) for rows in seen.levels])
        _refit(_rpn_readers(network), torch.cat(seen.levels), torch.cat(wanted), held)
        first, _ = seen.boxes
        held, layer = _held(first), network.roi_heads.box_head.fc7
        _refit([layer], first, self._second[:, : layer.out_features], held)
        _refit(_box_readers(network), F.relu(layer(first)), self.box_outputs, held)


def _held(rows: Tensor) -> Tensor:
    """bool (R,): the last one in `HELD_OUT` of the rows, which are those of the last images."""
    held = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    held[-max(1, len(rows) // HELD_OUT) :] = True
    return held


def _first(images: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The first batches with at least so many images together."""
    taken = 0
    for batch in images:
        if taken >= count:
            return
        taken += len(batch)
        yield batch


def _pyramid(network: FasterRCNN, maps: Sequence[Tensor]) -> dict[str, Tensor]:
    return network.backbone.neck(OrderedDict((str(level), features) for level, features in enumerate(maps)))


def _sizes(images: Tensor) -> list[tuple[int, int]]:
    return [(images.shape[2], images.shape[3])] * len(images)


def _proposals(network: FasterRCNN, images: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Proposals (N, 4) of each image, spread over all ranks."""
    proposals = network.rpn(ImageList(images, _sizes(images)), _pyramid(network, maps))[0]
    return [boxes[:: max(1, -(-len(boxes) // BOXES))] for boxes in proposals]


def _box_rows(
    network: FasterRCNN, pyramid: dict[str, Tensor], proposals: list[Tensor], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden channels (R, H) of both layers of the box head."""
    heads = network.roi_heads
    first = F.relu(heads.box_head.fc6(heads.box_roi_pool(pyramid, proposals, _sizes(images)).flatten(1)))
    return first, F.relu(heads.box_head.fc7(first))


def _box_outputs(network: FasterRCNN, images: Tensor, maps: Sequence[Tensor], proposals: list[Tensor]) -> Tensor:
    """Classes and boxes (R, O) of all proposals."""
    return _linear(_box_rows(network, _pyramid(network, maps), proposals, images)[1], _box_readers(network))


def _at_random(maps: Tensor, batch: int, level: int) -> Tensor:
    """The values (R, C) of maps (B, C, H, W) at positions that follow from the batch and the level."""
    flat = maps.permute(0, 2, 3, 1).flatten(1, 2)
    generator = torch.Generator().manual_seed(batch * 1_009 + level)
    chosen = torch.randperm(flat.shape[1], generator=generator)[:POSITIONS].to(maps.device)
    return flat[:, chosen].flatten(0, 1)


def _merged(network: FasterRCNN, maps: Sequence[Tensor]) -> list[Tensor]:
    """What the smoothing convolutions of the pyramid read."""
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    hooks = [block.register_forward_pre_hook(take) for block in network.backbone.neck.layer_blocks]
    _pyramid(network, maps)
    for hook in hooks:
        hook.remove()
    return found


def _moments(batches: Sequence[Sequence[Tensor]]) -> Tensor:
    """The second moments (C, C) of maps (B, C, H, W), float64, those of each level with trace 1."""
    total = None
    for level in zip(*batches, strict=True):
        moment = sum(_moment(maps) for maps in level)
        share = moment / moment.trace().clamp(min=1e-30)
        total = share if total is None else total + share
    assert total is not None
    return total


def _moment(maps: Tensor) -> Tensor:
    flat = maps.permute(1, 0, 2, 3).flatten(1).double()
    return flat @ flat.T


def _axes(moments: Tensor) -> Tensor:
    """The principal axes (C, C) as columns, those of most variance first."""
    return torch.linalg.eigh(moments).eigenvectors.flip(1)


def _rotate_outputs(layer: nn.Conv2d, axes: Tensor) -> None:
    weight = torch.einsum("oikl,op->pikl", layer.weight.double(), axes)
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(axes.T @ layer.bias.double())


def _rotate_inputs(layer: nn.Conv2d, axes: Tensor) -> None:
    layer.weight.copy_(torch.einsum("oikl,ip->opkl", layer.weight.double(), axes))


def _rotate_merged(network: FasterRCNN, axes: Tensor) -> None:
    """Rotate what lies between the lateral and the smoothing convolutions."""
    for lateral in network.backbone.neck.inner_blocks:
        _rotate_outputs(lateral[0], axes)
    for smooth in network.backbone.neck.layer_blocks:
        _rotate_inputs(smooth[0], axes)


def _rotate_levels(network: FasterRCNN, axes: Tensor) -> None:
    """Rotate the levels of the pyramid, and all that read them."""
    for smooth in network.backbone.neck.layer_blocks:
        _rotate_outputs(smooth[0], axes)
    _rotate_inputs(network.rpn.head.conv[0][0], axes)
    heads = network.roi_heads
    weight = heads.box_head.fc6.weight
    apart = weight.double().view(len(weight), len(axes), -1)
    weight.copy_(torch.einsum("hcs,cp->hps", apart, axes).flatten(1))
    if heads.has_mask():
        _rotate_inputs(heads.mask_head[0][0], axes)


def _reorder(network: FasterRCNN, seen: _Seen) -> None:
    """Put hidden channels first that explain best what is read from them."""
    readers = _rpn_readers(network)
    order = _order(torch.cat(seen.levels), readers)
    hidden = network.rpn.head.conv[0][0]
    _permute(hidden, order)
    for reader in readers:
        reader.weight.copy_(reader.weight[:, order])
    box_head = network.roi_heads.box_head
    first, second = seen.boxes
    order = _order(first, [box_head.fc7])
    _permute(box_head.fc6, order)
    box_head.fc7.weight.copy_(box_head.fc7.weight[:, order])
    readers = _box_readers(network)
    order = _order(second, readers)
    _permute(box_head.fc7, order)
    for reader in readers:
        reader.weight.copy_(reader.weight[:, order])


def _order(rows: Tensor, readers: Sequence[nn.Module]) -> Tensor:
    centred = rows - rows.mean(0)
    weight = torch.cat([reader.weight.flatten(1) for reader in readers])
    return greedy_order(centred.T @ centred / len(rows), weight)


def _permute(layer: nn.Conv2d | nn.Linear, order: Tensor) -> None:
    """Reorder the outputs of a layer."""
    layer.weight.copy_(layer.weight[order])
    assert layer.bias is not None
    layer.bias.copy_(layer.bias[order])


def _rpn_readers(network: FasterRCNN) -> list[nn.Module]:
    return [network.rpn.head.cls_logits, network.rpn.head.bbox_pred]


def _box_readers(network: FasterRCNN) -> list[nn.Module]:
    predictor = network.roi_heads.box_predictor
    return [predictor.cls_score, predictor.bbox_pred]


def _linear(rows: Tensor, readers: Sequence[nn.Module]) -> Tensor:
    """What linear layers or 1x1 convolutions compute, side by side: (R, O)."""
    return torch.cat([F.linear(rows, reader.weight.flatten(1), reader.bias) for reader in readers], 1)


def _refit(readers: Sequence[nn.Module], rows: Tensor, wanted: Tensor, held: Tensor) -> None:
    """Refit linear layers that read the same rows (R, C), unless they predict held-out rows better as they are."""
    before = (_linear(rows[held], readers) - wanted[held]).square().sum()
    prior = torch.cat([reader.weight.flatten(1) for reader in readers])
    weight, bias, _, errors = fit(rows, wanted, held, PENALTIES, prior)
    if errors.square().sum() >= before:
        return
    start = 0
    for reader in readers:
        end = start + len(reader.weight)
        reader.weight.copy_(weight[start:end].view_as(reader.weight))
        reader.bias.copy_(bias[start:end])
        start = end
