"""Stages: runnable steps that read files and write files, one module for each ``stage=`` of the command line.

Each has ``run(cfg, folder)``, which reads the configuration into a record of `nas_transfer.stages.config` and returns
the `Result` of the run. It returns None where there is none: in ``check``, ``predict`` and ``report``, which run again
with the same command; in the jobs of ``search`` and ``proxy``; and on ranks of a distributed run that do not write.

`nas_transfer.stages.common` holds what several stages share.
"""

from nas_transfer.stages.config.entry import begin_run, read_config, record_of

__all__ = ["begin_run", "read_config", "record_of"]
