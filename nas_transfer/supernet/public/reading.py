"""Read a model of a library: build it without values, and ask the readers of all families."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError, WeightsError
from nas_transfer.runs.atomic import replacing
from nas_transfer.supernet.public import timm_models, torchvision_models
from nas_transfer.supernet.readers import PublicNet, Reader, Reading
from nas_transfer.supernet.weights.origin import WeightsOrigin

READERS = (
    "nas_transfer.supernet.resnet.reader",
    "nas_transfer.supernet.mbconv.reader",
    "nas_transfer.supernet.convnext.reader",
)
"""The readers of all families, see `nas_transfer.supernet.readers.Reader`; the first that knows a network reads it."""
CACHE = "nas_transfer"
TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit, between a network that was read and the library's."""
CHECKED_SIZE = 96


class Library(Protocol):
    """The functions with which a library's models are described, built and downloaded."""

    def describe(self, model: str) -> PublicNet:
        """What the library says of a model; ConfigError for an unknown name."""

    def build(self, net: PublicNet) -> nn.Module:
        """The model with random weights."""

    def download(self, net: PublicNet) -> nn.Module:
        """The model with its public weights, from the library's cache or the network."""


LIBRARIES: Mapping[str, Library] = {"timm": timm_models, "torchvision": torchvision_models}


@lru_cache(maxsize=64)
def read_net(library: str, model: str) -> Reading:
    """A model of a library as a supernet.

    Raises:
        ConfigError: the library is not installed or has no such model, or a module cannot be read.
    """
    net = LIBRARIES[library].describe(model)
    network = build_empty(net)
    for name in READERS:
        reading = cast(Reader, import_module(name)).read(network, net)
        if reading is not None:
            return reading
    known = ", ".join(name.split(".")[-2] for name in READERS)
    raise ConfigError(
        f"{library}'s {net.model} cannot be read as a supernet: its class {type(network).__name__} is of none of the "
        f"families {known}; choose another supernet.model"
    )


def build_empty(net: PublicNet) -> nn.Module:
    """The model in eval mode, on the device ``meta`` if it can be built there. No random number is drawn."""
    library = LIBRARIES[net.library]
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of initial values, of which there are none
        try:
            with torch.device("meta"):
                return library.build(net).eval()
        except NotImplementedError:  # some models compute their widths with tensors
            return library.build(net).eval()


def origin_of(net: PublicNet) -> WeightsOrigin:
    """The origin of a model's public weights."""
    return WeightsOrigin(
        name=net.library,
        paper=net.paper,
        url=net.url,
        files=(),
        licence=net.licence,
        preprocessing=net.preprocessing,
        command=f"{net.command} weights=default",
        one_net=True,
        model=net.full_name if net.library == "timm" else f"{net.model} {net.tag}".strip(),
        crop_ratio=net.crop_ratio,
    )


def default_weights_file(net: PublicNet) -> Path:
    """The file with a model's public weights, which is written below torch's hub folder when it is first asked for.

    Raises:
        WeightsError: the library has no weights for the model, or they are in no cache and cannot be downloaded.
    """
    if not net.url:
        raise WeightsError(
            f"{net.library} has no weights for {net.model}: set weights=null to start from random ones, or weights=FILE"
        )
    path = Path(torch.hub.get_dir()) / CACHE / f"{net.name}.{net.tag or 'default'}.pth"
    if path.is_file():
        return path
    try:
        state = LIBRARIES[net.library].download(net).state_dict()
    except Exception as error:  # each library, its hub client and the network fail in ways of their own
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"the weights {net.tag or 'default'} of {net.library}'s {net.model} are in no cache and cannot be "
            f"downloaded from {net.url} ({reason or type(error).__name__}): run once with a network, or set "
            "weights=FILE"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(dict(state), stream)
    return path


@torch.no_grad()
def check_equal(net: PublicNet, state: Mapping[str, Tensor], body: nn.Module, head: nn.Module, path: Path) -> None:
    """Compare a network that was read with the library's, on random pixels.

    Args:
        net: the model.
        state: the tensors of the file.
        body, head: the supernet's body and head at the largest arch, in eval mode.
        path: path of the file, for messages.

    Raises:
        WeightsError: the logits differ, so that a module must have been read wrongly.
    """
    with torch.random.fork_rng(devices=()):
        network = LIBRARIES[net.library].build(net).eval()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name in state:
            tensor.copy_(state[name])
    images = torch.randn(1, 3, CHECKED_SIZE, CHECKED_SIZE, generator=torch.Generator().manual_seed(0))
    wanted, found = network(images), head(body(images)[-1])
    difference = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"the weights in {path} must give the outputs of {net.library}'s {net.model}, got a difference of "
            f"{difference:.2g} of the largest logit: the model has a module that is read wrongly, so choose another one"
        )
