"""MBConv supernets: AttentiveNAS and BigNAS, once-for-all, EfficientNet-Lite and MobileNetV3."""

from nas_transfer.supernet.mbconv.table import MBConvTable

__all__ = ["MBConvTable"]
