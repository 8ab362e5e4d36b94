"""Collects run folders into one page. Reads the records of `runs` and nothing else."""
