"""Data sets as they lie on disk, and the batches made from them: one file per layout."""
