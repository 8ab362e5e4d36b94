"""Weight-sharing supernets, taken to your own vision task and searched there."""

__version__ = "0.1.0"
