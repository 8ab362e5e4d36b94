"""The embedded datasets: `draw_shapes` writes each one to disk, in the layout of a real dataset."""

from nas_transfer.data.synthetic.shapes import draw_shapes

__all__ = ["draw_shapes"]
