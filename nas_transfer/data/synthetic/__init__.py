"""Embedded data sets, drawn by the program into real layouts on disk."""
