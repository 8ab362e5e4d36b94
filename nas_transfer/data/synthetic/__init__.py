"""The embedded data sets: `shapes.draw_shapes` writes each one to disk, in a layout that real data has too."""
