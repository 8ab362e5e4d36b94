"""DetNAS's supernet of ShuffleNetV2 blocks."""
