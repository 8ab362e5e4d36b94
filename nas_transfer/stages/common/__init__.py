"""Shared by several stages: building objects, training, scoring, run folders, search jobs."""
