"""Typed configuration: one frozen record for each stage, read from the composed YAML with all faults reported together.

Nothing here imports torch: the command line names a run's folder from these records before it loads anything.
"""

from nas_transfer.stages.config.base import DataRunConfig, RunConfig, StageConfig, TaskRunConfig
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import key
from nas_transfer.stages.config.network import ExportConfig, PredictConfig, ProfileConfig, ReportConfig
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.stages.config.training import CheckConfig, EvaluateConfig, TrainConfig

__all__ = [
    "CheckConfig",
    "DataRunConfig",
    "EvaluateConfig",
    "ExportConfig",
    "Factory",
    "PredictConfig",
    "ProfileConfig",
    "ProxyConfig",
    "ReportConfig",
    "RunConfig",
    "SearchConfig",
    "StageConfig",
    "TaskRunConfig",
    "TrainConfig",
    "key",
]
