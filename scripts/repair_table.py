"""Compare subnets of EfficientNet-Lite0 without training: recalibrated slices against closed-form repair.

    python scripts/repair_table.py [--data ../shared/data] [--views coco_tiny|flowers5] [--count 512] [--plain]

Subnets are cut out of the public network, whose channels are ordered by L1 norm (as imported) or greedily, and get
BatchNorm statistics from unlabelled random crops, or a repair from the same crops, each blended with another one. The
script prints top-1 on the images of ``imagenet_sample`` and the seconds of repair and recalibration. Those images are
probably training images of the public network: the figures compare rows and are no scores of ImageNet. It takes about
twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from nas_transfer.arch import Arch
from nas_transfer.paths import conf_dir
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.mending import match_batch_norms
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.repair import Repairer, order_channels
from nas_transfer.tasks.checkpoint import load_checkpoint

NAME = "efficientnet_lite0"
SIZE = 224
BATCH = 32
IMAGES = {"coco_tiny": "*2017/*.jpg", "flowers5": "train/*/*.jpg"}
BICUBIC = v2.InterpolationMode.BICUBIC
CROP = v2.Compose([v2.Resize(SIZE, interpolation=BICUBIC), v2.CenterCrop(SIZE)])
VIEW = v2.Compose([v2.RandomResizedCrop(SIZE, (0.3, 1.0), interpolation=BICUBIC), v2.RandomHorizontalFlip()])


def read(path: Path, transform: Callable[[Image.Image], Image.Image]) -> Tensor:
    """An image as the network takes it: float (3, 224, 224)."""
    with Image.open(path) as image:
        return (v2.functional.pil_to_tensor(transform(image.convert("RGB"))).float() - 127) / 128


def batched(images: list[Tensor]) -> list[Tensor]:
    """Batches (B, 3, H, W) in channels_last."""
    return [batch.to(memory_format=torch.channels_last) for batch in torch.stack(images).split(BATCH)]


def read_views(folder: Path, pattern: str, count: int) -> list[Tensor]:
    """Random crops, equally many of each image."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise SystemExit(f"{folder} must hold images {pattern}, got none")
    torch.manual_seed(0)
    order = [paths[int(index)] for index in torch.randperm(len(paths))]
    return [read(order[number % len(order)], VIEW) for number in range(count)]


def blended(views: list[Tensor]) -> list[Tensor]:
    """Each view blended with another one (mixup, Zhang et al. 2018), which makes more of few images.

    The largest network's features of blends are as good a target as those of images (Beyer et al. 2022, "Knowledge
    distillation: A good teacher is patient and consistent").
    """
    shares, others = torch.rand(len(views)).tolist(), torch.randperm(len(views)).tolist()
    return [share * view + (1 - share) * views[other] for view, share, other in zip(views, shares, others)]


def read_labelled(folder: Path) -> tuple[list[Tensor], Tensor]:
    """Batches of the evaluation images and their classes (N,)."""
    names = (folder / "wnids.txt").read_text().split()
    paths = sorted(folder.glob("val/*/*"))
    return batched([read(path, CROP) for path in paths]), torch.tensor([names.index(p.parent.name) for p in paths])


def archs_of(table: SupernetTable) -> dict[str, Arch]:
    """The subnets of the table, all for images of 224 pixels."""
    space = table.space
    whole, smallest = space.largest().to_dict(), {**space.smallest().to_dict(), "resolution": SIZE}
    depths = [max(1, depth - 1) for depth in whole["depth"]]
    changes = {
        "expand 4": {"expand_ratio": [min(ratio, 4) for ratio in whole["expand_ratio"]]},
        "expand 3": {"expand_ratio": [min(ratio, 3) for ratio in whole["expand_ratio"]]},
        "kernel 3": {"kernel_size": [3] * len(whole["kernel_size"])},
        "depth -1": {"depth": depths},
    }
    archs = {name: space.from_dict({**whole, **change}) for name, change in changes.items()}
    return {**archs, "min": space.from_dict(smallest)}


class Comparison:
    """The public network in one order of channels.

    Args:
        table: its table.
        body, head: supernets with its weights.
        views: unlabelled batches for recalibration.
        blends: unlabelled batches for repair.
        images, labels: the evaluation images.
    """

    def __init__(
        self, table: SupernetTable, body: nn.Module, head: nn.Module, views: list[Tensor], blends: list[Tensor],
        images: list[Tensor], labels: Tensor,
    ) -> None:  # fmt: skip
        self.table, self.body, self.head = table, body, head
        self.images, self.labels = images, labels
        self.views, self.blends = views, blends
        start = time.perf_counter()
        whole, self.whole_head = self.cut(table.space.largest())
        self.repairer = Repairer(table, whole, blends)
        self.whole_features = self.features(whole)
        print(f"statistics of the whole network: {time.perf_counter() - start:.1f} s", flush=True)

    def cut(self, arch: Arch) -> tuple[nn.Module, nn.Module]:
        """Body and head of an arch, as sliced."""
        body, head = build_body(self.table, arch), build_classifier(self.table, 1000, arch)
        copy_slices(self.body, body)
        copy_slices(self.head, head)
        return body.eval().to(memory_format=torch.channels_last), head.eval()

    @torch.no_grad()
    def features(self, body: nn.Module) -> list[Tensor]:
        """The last feature maps of the blends, batch by batch."""
        return [body(images)[-1] for images in self.blends]

    @torch.no_grad()
    def top1(self, body: nn.Module, head: nn.Module) -> float:
        """Top-1 in percent."""
        predicted = torch.cat([head(body(images)[-1]).argmax(1) for images in self.images])
        return 100 * (predicted == self.labels).float().mean().item()

    def recalibrated(self, arch: Arch) -> tuple[float, float]:
        """Top-1 of the recalibrated slice and the seconds of its recalibration."""
        body, head = self.cut(arch)
        start = time.perf_counter()
        recalibrate_batch_norm(nn.ModuleList([body, head]), self.views, lambda images: head(body(images)[-1]))
        seconds = time.perf_counter() - start
        return self.top1(body, head), seconds

    def repaired(self, arch: Arch) -> tuple[float, float]:
        """Top-1 of the repaired subnet, whose head has matched norms, and the seconds of its repair."""
        body, head = self.cut(arch)
        start = time.perf_counter()
        self.repairer.repair(body)
        match_batch_norms(head, self.features(body), self.whole_head, self.whole_features)
        seconds = time.perf_counter() - start
        return self.top1(body, head), seconds


def main() -> None:
    """Run the comparison and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--views", choices=IMAGES, default="coco_tiny")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--plain", action="store_true", help="repair from the crops as they are")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    table = instantiate(OmegaConf.load(conf_dir() / "supernet" / f"{NAME}.yaml"))
    checkpoint = load_checkpoint(NAME, table)
    body, head = build_body(table).eval(), build_classifier(table, 1000).eval()
    body.load_state_dict(checkpoint.body, strict=False)
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in checkpoint.rest.items()})
    crops = read_views(options.data / options.views, IMAGES[options.views], options.count)
    views = batched(crops)
    blends = views if options.plain else batched(blended(crops))
    images, labels = read_labelled(options.data / "imagenet_sample")
    print(f"{options.count} views of {options.views}, {len(labels)} images, {options.threads} threads", flush=True)
    imported = Comparison(table, body, head, views, blends, images, labels)
    ordered_body = copy.deepcopy(body)
    start = time.perf_counter()
    order_channels(table, ordered_body, views)
    print(f"greedy order: {time.perf_counter() - start:.1f} s")
    ordered = Comparison(table, ordered_body, head, views, blends, images, labels)
    whole = ordered.top1(*ordered.cut(table.space.largest()))
    print(f"whole network: {whole:.1f} %\n")
    print("| subnet | body MACs (M) | L1 order, recalibrated | L1 order, repaired | greedy order, recalibrated | "
          "greedy order, repaired | recalibration (s) | repair (s) |")  # fmt: skip
    print("| --- " * 8 + "|")
    for name, arch in archs_of(table).items():
        macs = table.body_cost(arch, (SIZE, SIZE)).macs / 1e6
        cells = [f"{macs:.0f}"]
        for comparison in (imported, ordered):
            before, recalibration = comparison.recalibrated(arch)
            after, repair = comparison.repaired(arch)
            cells += [f"{before:.1f} %", f"{after:.1f} %"]
        print(f"| {name} | {' | '.join(cells)} | {recalibration:.1f} | {repair:.1f} |", flush=True)


if __name__ == "__main__":
    main()
