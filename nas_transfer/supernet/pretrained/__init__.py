"""Importers of public checkpoints, one file per layout; `importing` chooses among them."""
