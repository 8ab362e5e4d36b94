"""What every head of top-down pose estimation is: sizes that a configuration states, and what they make of a body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.data.samples import PoseBatch
from nas_transfer.supernet.cost import Cost, Size
from nas_transfer.supernet.layers import Layers


class KeypointHead(Protocol):
    """The sizes of a head: a frozen dataclass that ``task.build.head`` names.

    To add a head, write such a dataclass and its network in one Python file, and a YAML in ``conf/head``. The network
    maps normalised crops (B, 3, H, W) to one tensor (B, K, ...), the outputs, and holds the body as ``body``.

    Attributes:
        model: name of the head in reports; weights of one head do not fit another.
        output: name of the outputs in an exported network, and of the loss.
        untrained_genes: genes whose smaller choices can do with the weights of the largest.
    """

    model: ClassVar[str]
    output: ClassVar[str]
    untrained_genes: ClassVar[tuple[str, ...]]

    @property
    def flip_test(self) -> bool:
        """Whether the outputs of each crop and of its mirror image are averaged."""

    @property
    def score_threshold(self) -> float:
        """The lowest score of a keypoint that counts in the score of a person."""

    @property
    def oks_threshold(self) -> float:
        """Similarity above which two persons of an image are one."""

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, by the name of the gene, each the larger the costlier."""

    def check(self, choices: Mapping[str, Sequence[int]], listed: Sequence[str], crops: Sequence[Size]) -> None:
        """Raise ConfigError for choices that cannot be.

        Args:
            choices: all choices of each gene.
            listed: the genes for which the configuration lists choices.
            crops: the smallest and the largest size (H, W) of a crop.
        """

    def with_genes(self, values: Mapping[str, int], share: float) -> Self:
        """The head of an arch; names in `values` that are not in `genes` are left alone.

        Args:
            values: the values of the genes.
            share: the height of its crops as a share of that of the largest.
        """

    def build(
        self, body: nn.Module, in_channels: int, num_keypoints: int, layers: Layers,
        choices: Mapping[str, Sequence[int]],
    ) -> nn.Module:  # fmt: skip
        """The network around a body, whose last map has at most `in_channels` channels."""

    def follow(self, network: nn.Module) -> None:
        """Make an elastic network, built from sizes that are at least as large, use these."""

    def cost(self, in_channels: int, input_size: Size, num_keypoints: int) -> Cost:
        """The cost of the head for one crop of `input_size` (H, W)."""

    def loss(self, outputs: Tensor, batch: PoseBatch) -> Tensor:
        """The loss of the outputs against labelled keypoints."""

    def imitation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The loss against the outputs of the largest arch."""

    def loss_factor(self, largest_input: Size, size: Sequence[int], head: Self) -> float:
        """What the losses of a smaller head are multiplied by, so that all archs count alike.

        Args:
            largest_input: (H, W) of the largest crops, those of this head.
            size: the shape of the outputs of the smaller head behind (B, K).
            head: the smaller head.
        """

    def mirrored(self, outputs: Tensor, flip_pairs: Sequence[Sequence[int]]) -> Tensor:
        """The outputs that a mirrored crop should give."""

    def decode(self, outputs: Tensor, crop: Size) -> tuple[Tensor, Tensor]:
        """Positions (B, K, 2) in the pixel-index frame of a crop (H, W) and scores (B, K) in 0-1."""
