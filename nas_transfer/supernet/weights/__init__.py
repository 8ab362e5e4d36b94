"""Public weights: records of their origin, maps of tensor names, and safe reading.

The importers of all families share these modules. The names exported here are free of torch; `reading` needs it.
"""

from nas_transfer.supernet.weights.layout import Importer, Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

__all__ = ["Importer", "Layout", "WeightsOrigin"]
