"""torchvision's ResNets as baselines: each is a space of one arch."""

from nas_transfer.supernet.resnet.table import ResNetTable

__all__ = ["ResNetTable"]
