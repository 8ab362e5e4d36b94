"""The result file of a run: what was done, what it scored, what it cost, and with which versions."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "nas-transfer",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "torchmetrics",
    "pycocotools",
    "numpy",
    "optuna",
)
RESULT_FILE, RUN_FILE = "result.json", "run.json"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Result:
    """Everything that ``result.json`` holds. Scores are fractions in 0-1.

    Attributes:
        stage, task: what ran.
        arch: dict form, None for a supernet.
        score_key: the metric that searches maximise.
        score: its value, None for a stage that scores nothing.
        metrics: all of the task's metrics.
        costs: macs and params by part and in total, the input size (H, W) and the classes they are stated for.
        seconds: wall time of the stage's work, interruptions left out.
        devices: processes that trained, one a device.
        gpu_hours: seconds x devices on an accelerator, 0 on CPUs.
        images_seen: images loaded for training; a sandwich runs each through several archs (`passes_per_image`).
        samples_digest: hash over the ids of the training samples in their order, empty without training.
        passes_per_image: archs that each image was run through.
        search: of a search: numbers of trials, the front's size and hypervolume, the picked trial.
        export: of an export: differences between engines, latencies, and what the weights descend from.
        versions, git, seed, config_sha256: to make it again.
        status: ``finished``; an unfinished run has no result.
    """

    stage: str
    task: str
    arch: dict[str, Any] | None
    score_key: str | None
    score: float | None
    metrics: dict[str, float]
    costs: dict[str, Any]
    seconds: float
    devices: int
    gpu_hours: float
    images_seen: int
    passes_per_image: int
    samples_digest: str
    seed: int
    config_sha256: str
    search: dict[str, Any] | None = None
    export: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())
    git: str | None = field(default_factory=lambda: git_revision(Path(__file__).parent))
    status: str = "finished"

    def to_dict(self) -> dict[str, Any]:
        """The plain mapping that is written."""
        return asdict(self)


def write_json_atomically(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON so that the file is either the old one or the whole new one.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision(folder: Path) -> str | None:
    """Short commit hash of a checkout that tracks `folder`, with ``-dirty`` after local changes; else None.

    A package that is installed below somebody else's checkout has no revision: theirs is not ours.
    """
    if not _git(folder, "ls-files", "."):
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
