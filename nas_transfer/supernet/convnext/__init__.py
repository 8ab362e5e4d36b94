"""ConvNeXt and ConvNeXtV2 as supernets: depth, expansion and kernel size are elastic, and LayerNorm needs no images."""

from nas_transfer.supernet.convnext.table import ConvNeXtTable

__all__ = ["ConvNeXtTable"]
