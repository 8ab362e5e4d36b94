"""What a run leaves behind for people and other runs to read."""
