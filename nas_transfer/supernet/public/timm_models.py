"""timm's models: what their ``pretrained_cfg`` says, and how they are built. timm is imported when it is needed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import ModuleType

from torch import nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.preprocessing import LARGEST_PIXEL, Preprocessing
from nas_transfer.supernet.readers import PublicNet

LIBRARY = "timm"
NEAREST = 4
RESEARCH = "trained on ImageNet, whose images are for research"


def describe(model: str) -> PublicNet:
    """What timm says of a model, whose name may end in a dot and the tag of its weights.

    Raises:
        ConfigError: timm is not installed, or has no such model or tag.
    """
    timm = _timm()
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), NEAREST)
        raise ConfigError(f"timm has no model '{name}'{_instead(near)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise ConfigError(f"timm has no weights '{tag}' for {name}{_instead(tags)}")
    fields = timm.get_pretrained_cfg(model).to_dict()
    found = str(fields.get("tag") or "")  # such as "untrained", which names no weights
    mean, std = (tuple(round(value * LARGEST_PIXEL, 6) for value in fields[field]) for field in ("mean", "std"))
    return PublicNet(
        library=LIBRARY,
        model=name,
        tag=tag or (found if found in tags else ""),
        url=_url(fields),
        paper=_paper(fields),
        licence=f"{fields.get('license') or 'not stated'} (timm's weights), {RESEARCH}",
        preprocessing=Preprocessing(mean, std, interpolation=fields["interpolation"]),  # type: ignore[arg-type]
        resolution=int(fields["input_size"][-1]),
        crop_ratio=float(fields["crop_pct"]),
        num_classes=int(fields["num_classes"]),
    )


def build(net: PublicNet) -> nn.Module:
    """The model with random weights."""
    model: nn.Module = _timm().create_model(net.model, pretrained=False, num_classes=net.num_classes)
    return model


def download(net: PublicNet) -> nn.Module:
    """The model with the weights of its tag, from the cache of timm or of the Hugging Face hub, or the network."""
    name = f"{net.model}.{net.tag}" if net.tag else net.model
    model: nn.Module = _timm().create_model(name, pretrained=True)
    return model


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError("supernet=timm needs timm: pip install 'nas-transfer[timm]'") from error
    module: ModuleType = timm
    return module


def _instead(names: list[str]) -> str:
    return f": did you mean {', '.join(names)}?" if names else ": see timm.list_models()"


def _url(fields: Mapping[str, object]) -> str:
    hub = fields.get("hf_hub_id")
    return f"https://huggingface.co/{hub}" if hub else str(fields.get("url") or "")


def _paper(fields: Mapping[str, object]) -> str:
    papers = fields.get("paper_ids") or fields.get("origin_url") or ""
    names = [papers] if isinstance(papers, str) else list(papers)  # type: ignore[call-overload]
    return ", ".join(str(name).removeprefix("arXiv:") for name in names)
