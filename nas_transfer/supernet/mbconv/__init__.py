"""MBConv supernets: AttentiveNAS and BigNAS, once-for-all, EfficientNet-Lite, MobileNetV3."""
