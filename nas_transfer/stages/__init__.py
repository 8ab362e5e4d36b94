"""Stages: runnable steps that read files and write files; one file each, with ``run(cfg, folder) -> Result``."""
