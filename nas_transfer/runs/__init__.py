"""The run folder: the names of its files, and records that are read and written in one place."""
