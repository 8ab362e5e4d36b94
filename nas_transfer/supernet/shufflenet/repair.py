"""The links of ShuffleNet bodies, see `nas_transfer.supernet.links`.

Operations do not share weights, so a path is no slice of another one. Where both have the same operation, their blocks
are equal, and repairing corrects what earlier blocks changed. Elsewhere the last layer of the path's own operation is
fitted to the output of the largest network's block.

The largest arch takes xception blocks everywhere. It is the most expensive path; other paths are no parts of it. So
repair only helps where the network that it starts from has been trained as a whole, which makes it better than the
other paths; the body of any arch can be that network. In a supernet that was trained path by path, the features of one
path are no better than those of another, and recalibrating a path serves it better than repairing it.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate

from torch import Tensor, nn

from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.links import Branch, Link, Part
from nas_transfer.supernet.shufflenet.network import ShuffleBlock, ShuffleNetBody, shuffle_and_split
from nas_transfer.supernet.shufflenet.table import OPERATIONS


def stem(body: ShuffleNetBody) -> nn.Module:
    """The first convolution."""
    return body.first_conv


def links(body: ShuffleNetBody) -> list[Link]:
    """The blocks of the active path in order."""
    ends = list(accumulate(body.table.repeats))
    found = []
    for number, (choices, operation) in enumerate(zip(body.blocks, body.arch.group("op"), strict=True)):
        stage = sum(number >= end for end in ends)
        block: ShuffleBlock = choices[str(operation)]  # type: ignore[index]
        # The ReLU leaves the channels that pass as they are, since each of them is the output of an earlier ReLU.
        name = f"{number}.{OPERATIONS[operation]}"
        found.append(Link(name, stage, block, _parts(block), rectified=True, kind=operation))
    return found


def _parts(block: ShuffleBlock) -> tuple[Part, Part]:
    """The projection branch, or the channels that pass, and the main branch."""
    if block.projection is not None:
        return _part(_branch(block.projection)), _part(_branch(block.main))
    main = _branch(block.main, block.channel_shuffle_method)
    passed = Part(block.main[0].conv.in_channels, (), partial(_passed, block.channel_shuffle_method))  # type: ignore[union-attr]
    return passed, _part(main)


def _part(branch: Branch) -> Part:
    return Part(branch.project.conv.out_channels, (branch,))


def _branch(layers: nn.Sequential, method: int | None = None) -> Branch:
    """A branch of all channels, or of those that do not pass with this channel shuffle."""
    *inner, last = layers
    project = ConvNormActivation(last.conv, last.norm, None)
    if method is None:
        return Branch(tuple(inner), project)
    return Branch(tuple(inner), project, reads=lambda features: shuffle_and_split(features, method)[1])


def _passed(method: int, features: Tensor, channels: int) -> Tensor:
    return shuffle_and_split(features, method)[0]
