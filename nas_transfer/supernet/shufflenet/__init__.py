"""DetNAS's supernet of ShuffleNetV2 blocks."""

from nas_transfer.supernet.shufflenet.table import ShuffleNetTable

__all__ = ["ShuffleNetTable"]
