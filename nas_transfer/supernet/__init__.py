"""Weight-sharing supernets: tables that describe them, costs of their archs, and the networks that hold their weights.

What is exported here and by the families (`mbconv`, `shufflenet`, `resnet`, `convnext`) is free of torch: an arch is
drawn and its cost computed without a network. Modules that need torch are imported by their own name:

- `networks`: `build_body`, `build_classifier` and `latency_pieces` build what a table describes.
- `importing`: public weights as a supernet's tensors.
- `layers` and `ops`: elastic and plain layers on which networks, necks and heads are built.
- `calibrate`: BatchNorm statistics of an extracted subnet.
"""

from nas_transfer.supernet.cost import Cost, CostTotals, ModuleCost, Size
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES, SupernetTable

__all__ = ["TAP_STRIDES", "Cost", "CostTotals", "ModuleCost", "Preprocessing", "Size", "SupernetTable"]
