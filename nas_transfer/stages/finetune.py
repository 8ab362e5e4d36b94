"""Train one arch, or the whole supernet, on a downstream task."""

from nas_transfer.stages.common.training import train as run

__all__ = ["run"]
