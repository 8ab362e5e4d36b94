"""The versions of packages and the revision of a checkout, to reproduce a run."""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "nas-transfer",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "torchmetrics",
    "pycocotools",
    "faster-coco-eval",
    "numpy",
    "optuna",
    "timm",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, without importing them."""
    by_package = {}
    for package in PACKAGES:
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


def program_sha256(package: Path) -> str:
    """A hash of the source files of a package and of the installed `versions`.

    Two processes with the same hash compute the same from the same input, as far as the program is concerned.
    """
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def git_revision(folder: Path) -> str | None:
    """Short commit hash of a checkout that tracks `folder`, with ``-dirty`` after local changes; else None.

    A package that is installed below somebody else's checkout has no revision: that of the checkout is not its own.
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
