"""The Python API, for notebooks and other programs: `running` needs no torch, `network` does."""
