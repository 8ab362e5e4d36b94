"""Several heads of top-down pose around one body, among which a gene chooses (`nas_transfer.tasks.several`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from torch import Tensor, nn

from nas_transfer.arch import Arch
from nas_transfer.ranges import Share
from nas_transfer.space import SearchSpace
from nas_transfer.tasks.genes import Choices, task_genes
from nas_transfer.tasks.keypoint_head import KeypointHead
from nas_transfer.tasks.pose_sizes import INPUT_HEIGHT, PoseSizes
from nas_transfer.tasks.several import Heads, SeveralHeads, SeveralNetworks, made

KEY = "task.build.head"


class KeypointChoice(TypedDict):
    """One of the heads: makes its largest sizes from what all share, and has smaller choices of its genes."""

    head: Callable[..., KeypointHead]
    genes: Choices | None


@dataclass(frozen=True)
class SeveralKeypointHeads(SeveralHeads[KeypointHead]):
    """Heads among which an arch chooses.

    Args:
        heads: the names of at least two of them, from the cheapest to the costliest: the smallest arch has the first,
            the largest arch the last.
        of: the heads by name.
        flip_test: average the outputs of each crop and of its mirror image; twice the time.
        score_threshold: keypoints below it do not count in the score of a person.
        oks_threshold: similarity above which two persons of an image are one.

    Raises:
        ConfigError: a name that is unknown or repeated, or a size that a head cannot have.
    """

    heads: tuple[str, ...]
    of: Mapping[str, KeypointChoice]
    flip_test: bool
    score_threshold: Share
    oks_threshold: Share

    @cached_property
    def candidates(self) -> Heads[KeypointHead]:
        """The heads that are chosen from."""
        shared = {
            "flip_test": self.flip_test, "score_threshold": self.score_threshold, "oks_threshold": self.oks_threshold
        }  # fmt: skip
        largest = {name: made(choice["head"], shared, KEY, f"{KEY}.of.{name}.head") for name, choice in self.of.items()}
        return Heads(self.heads, largest, {name: choice["genes"] for name, choice in self.of.items()}, KEY)


class SeveralPoseSizes:
    """The input size and the head of each arch with one of several heads, as `PoseSizes` for one.

    Args:
        heads: the heads.
        input_size: (H, W) of the largest crops, multiples of 32.
        choices: of the gene ``input_height`` in pixels; None if it is fixed.
        body: the space of the body.

    Attributes:
        genes: the genes of the task.

    Raises:
        ConfigError: as for `PoseSizes`, for any of the heads.
    """

    def __init__(
        self, heads: SeveralKeypointHeads, input_size: tuple[int, int], choices: Choices | None, body: SearchSpace
    ) -> None:
        self.candidates = heads.candidates
        self.genes = (*task_genes({INPUT_HEIGHT: input_size[0]}, choices), *self.candidates.genes())
        self.by_name = {
            name: PoseSizes(head, input_size, {**(choices or {}), **(self.candidates.choices[name] or {})}, body)
            for name, head in self.candidates.largest.items()
        }

    @property
    def resizes(self) -> bool:
        """Whether archs have crops of several sizes."""
        return self.by_name[self.candidates.last].resizes

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """(H, W) of the crops of an arch, in pixels."""
        return self.of(arch).input_size(self.candidates.alone(arch))

    def head(self, arch: Arch) -> KeypointHead:
        """The head of an arch."""
        return self.of(arch).head(self.candidates.alone(arch))

    def of(self, arch: Arch) -> PoseSizes:
        """The sizes of the archs with the head of this one."""
        return self.by_name[self.candidates.name(arch)]


class SeveralKeypointNetworks(nn.Module):
    """The networks of several heads around one body, of which one is active."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.several = SeveralNetworks(networks, list(networks.values()))
        self.body = list(networks.values())[-1].body

    def forward(self, images: Tensor) -> Tensor:
        """The outputs of the active head."""
        outputs = self.several(images)
        assert isinstance(outputs, Tensor)
        return outputs
