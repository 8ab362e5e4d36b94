"""Samplers: which arch a search asks for next, given all that it was told; one file each."""
