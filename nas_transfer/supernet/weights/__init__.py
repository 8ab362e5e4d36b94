"""What the importers of public checkpoints share: how their tensors map to a supernet's, and safe reading."""
