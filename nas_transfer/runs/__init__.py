"""The run folder: the names of its files, and records that are written and read in one place.

Every record is a frozen dataclass with ``write(folder)`` and a ``read_...`` function; its file holds a format version.
Nothing here imports torch, numpy or Hydra.
"""

from nas_transfer.runs import files
from nas_transfer.runs.check import (
    Check,
    Finding,
    LabelSummary,
    PartSummary,
    PersonSummary,
    TrainingEstimate,
    read_check,
)
from nas_transfer.runs.costs import SECONDS_PER_HOUR, Ancestor, ArchContent, Costs, Usage
from nas_transfer.runs.damage import ChoiceDamage, DamageTable, read_damage
from nas_transfer.runs.fronts import (
    CONFIDENCE,
    Direction,
    Front,
    PredictorQuality,
    RankQuality,
    Repeats,
    Trial,
    Validation,
    read_front,
    read_validation,
)
from nas_transfer.runs.inputs import (
    WEIGHTS,
    InputFile,
    Inputs,
    file_sha256,
    hold_inputs,
    input_file,
    list_images,
    next_aside,
    read_inputs,
    require_same_file,
    require_same_files,
)
from nas_transfer.runs.kinds import TaskKind
from nas_transfer.runs.manifest import Manifest, read_manifest
from nas_transfer.runs.result import ExportSummary, Result, SearchSummary, read_result
from nas_transfer.runs.trials import (
    Evaluation,
    Job,
    Outcome,
    Spent,
    read_job,
    read_outcome,
    read_spent,
    read_started,
    usage_in,
    write_job,
    write_started,
)

__all__ = [
    "CONFIDENCE",
    "SECONDS_PER_HOUR",
    "WEIGHTS",
    "Ancestor",
    "ArchContent",
    "Check",
    "ChoiceDamage",
    "Costs",
    "DamageTable",
    "Direction",
    "Evaluation",
    "ExportSummary",
    "Finding",
    "Front",
    "InputFile",
    "Inputs",
    "Job",
    "LabelSummary",
    "Manifest",
    "Outcome",
    "PartSummary",
    "PersonSummary",
    "PredictorQuality",
    "RankQuality",
    "Repeats",
    "Result",
    "SearchSummary",
    "Spent",
    "TaskKind",
    "TrainingEstimate",
    "Trial",
    "Usage",
    "Validation",
    "file_sha256",
    "files",
    "hold_inputs",
    "input_file",
    "list_images",
    "next_aside",
    "read_check",
    "read_damage",
    "read_front",
    "read_inputs",
    "read_job",
    "read_manifest",
    "read_outcome",
    "read_result",
    "read_spent",
    "read_started",
    "read_validation",
    "require_same_file",
    "require_same_files",
    "usage_in",
    "write_job",
    "write_started",
]
