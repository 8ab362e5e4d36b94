"""Print how public networks of timm and torchvision compare with the supernets that are read from them.

Random weights and random BatchNorm statistics, so that nothing is downloaded. For each network: the largest difference
of the logits and of the feature maps at strides 4, 8, 16 and 32 from the library's (timm: ``features_only``), relative
to the largest value; whether multiply-accumulates and parameters equal those that torch counts; and the size of the
space. Exits with 1 if a difference is above 1e-5 or a cost differs.

Run: python scripts/timm_parity.py [IMAGE ...], on random pixels if there are no images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.supernet.importing import fill_supernet
from nas_transfer.supernet.public import reading
from nas_transfer.supernet.readers import PublicNet
from nas_transfer.supernet.weights.origin import WeightsOrigin

MODELS = {
    "ResNet": ("timm resnet18", "timm resnet50", "torchvision resnet50", "timm wide_resnet50_2"),
    "ResNet-D": ("timm resnet26d", "timm resnet50d"),
    "ResNeXt": ("timm resnext50_32x4d",),
    "RegNet": ("timm regnetx_002", "timm regnety_004", "torchvision regnet_y_400mf"),
    "MobileNetV2": ("timm mobilenetv2_100", "torchvision mobilenet_v2"),
    "MobileNetV3": ("timm mobilenetv3_large_100", "torchvision mobilenet_v3_small"),
    "EfficientNet": ("timm efficientnet_b0", "timm tf_efficientnet_b1", "timm efficientnet_b4"),
    "EfficientNet-Lite": ("timm tf_efficientnet_lite0",),
    "EfficientNetV2": ("timm tf_efficientnetv2_s", "timm efficientnetv2_rw_t", "torchvision efficientnet_v2_s"),
    "MNASNet": ("timm mnasnet_100", "torchvision mnasnet1_0"),
    "FBNet": ("timm fbnetc_100", "timm fbnetv3_b"),
    "TinyNet": ("timm tinynet_a",),
    "HardCoRe-NAS": ("timm hardcorenas_a",),
    "ConvNeXt": ("timm convnext_atto", "timm convnext_tiny", "torchvision convnext_tiny"),
}
SIZE = 224
TOLERANCE = 1e-5
COLUMNS = ("family", "model", "logits", "features", "MACs (M)", "params (M)", "equal to torch's", "archs")


def network_of(net: PublicNet) -> nn.Module:
    """The library's network with random weights, scales, shifts and statistics, so that every norm matters."""
    torch.manual_seed(0)
    network = reading.LIBRARIES[net.library].build(net).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("gamma", "layer_scale")):  # which start near 0
            tensor.uniform_(0.05, 0.15)
    return network


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def row_of(family: str, choice: str, images: Tensor) -> tuple[tuple[str, ...], bool]:
    """The row of a network, and whether all agrees."""
    library, model = choice.split()
    read = reading.read_net(library, model)
    table, net = read.table, reading.LIBRARIES[library].describe(model)
    network = network_of(net)
    origin: WeightsOrigin = reading.origin_of(net)
    body, head = fill_supernet(network.state_dict(), read.layout, table, origin, Path(model), net.num_classes)
    maps = body.eval()(images)
    logits = difference(head.eval()(maps[-1]), network(images))
    worst, features = logits, "-"
    if library == "timm":
        public = timm.create_model(model, features_only=True).eval()
        own = network.state_dict()  # lists of features rename stages: layers_0 is layers.0
        names = {name.replace(".", "_"): name for name in own}
        public.load_state_dict({name: own[names[name.replace(".", "_")]] for name in public.state_dict()})
        wanted = dict(zip(public.feature_info.reduction(), public(images), strict=True))
        errors = [difference(found, wanted[stride]) for found, stride in zip(maps, (4, 8, 16, 32), strict=True)]
        worst, features = max(worst, *errors), f"{max(errors):.0e}"
    with FlopCounterMode(display=False) as counter:
        network(images[:1])
    arch, size = table.space.largest(), (images.shape[2], images.shape[3])
    cost = table.body_cost(arch, size) + table.classifier_cost(arch, size, net.num_classes)
    params = sum(parameter.numel() for parameter in network.parameters())
    equal = cost.macs == counter.get_total_flops() // 2 and cost.params == params
    numbers = (
        f"{cost.macs / 1e6:.1f}",
        f"{cost.params / 1e6:.2f}",
        "yes" if equal else "no",
        f"{table.space.size:.1e}",
    )
    return (family, choice, f"{logits:.0e}", features, *numbers), equal and worst <= TOLERANCE


def read_images(paths: Sequence[str]) -> Tensor:
    """Images (B, 3, 224, 224), scaled to the moments of random pixels."""
    if not paths:
        return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE)), dtype=np.float32) for path in paths]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return (images - images.mean()) / images.std()


def main() -> int:
    """Print the table; the exit status is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="image files")
    paths = parser.parse_args().images
    torch.set_num_threads(1)
    images, fine, count = read_images(paths), True, 0
    print(f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}, "
          f"{len(images)} {'images' if paths else 'random images'} of {SIZE}x{SIZE}\n")  # fmt: skip
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"| {' | '.join('---' for _ in COLUMNS)} |")
    for family, choices in MODELS.items():
        for choice in choices:
            row, agrees = row_of(family, choice, images)
            print(f"| {' | '.join(row)} |", flush=True)
            fine, count = fine and agrees, count + 1
    print(f"\n{count} models of {len(MODELS)} families: {'all agree' if fine else 'something differs'}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
