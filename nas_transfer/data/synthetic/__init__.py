"""The embedded data sets: `draw_shapes` writes each one to disk, in the layout of a real data set."""

from nas_transfer.data.synthetic.shapes import draw_shapes

__all__ = ["draw_shapes"]
