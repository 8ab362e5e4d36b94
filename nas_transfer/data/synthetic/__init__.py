"""The drawn datasets: `shapes.draw_shapes` writes each one to disk, in the layout of a real dataset."""
