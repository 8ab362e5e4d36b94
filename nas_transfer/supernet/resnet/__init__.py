"""torchvision's ResNets, as spaces of one arch."""
