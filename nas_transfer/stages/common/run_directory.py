"""A run's folder: whose it is, whether it is finished, and what identifies it."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Manifest, Result, files, read_manifest, read_result

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # all 0 or unset in the process that writes
SHOWN_ONLY = {
    "hydra", "name", "runs", "run_dir", "resume", "num_workers", "tensorboard", "checkpoint_every_n_steps",
    "experiment", "pick", "pick_under", "search.job", "search.trials", "search.trials_per_job", "search.max_failures",
    "search.storage", "search.cache_mb", "search.repeats", "search.trade_off", "proxy.validate", "proxy.validate_times",
    "proxy.budget", "trainer.enable_progress_bar", "trainer.log_every_n_steps", "data.num_workers",
    "sample_predictions",
}  # fmt: skip
"""Keys that change what is shown, or where, but not the result."""


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The keys that change a run's result, flat, resolved and plain JSON; the groups in ``stage.unused`` do not.

    What follows from the run's folder, such as a path below ``${run_dir}``, counts as one and the same for every run:
    the folder's name comes from this very identity.

    Raises:
        ConfigError: a value that must be set is missing, naming it.
    """
    cfg = copy.deepcopy(cfg)
    for folder_key in ("name", "runs", "run_dir"):
        cfg[folder_key] = "-"
    flat: dict[str, Any] = {}
    unused = set(cfg.stage.unused)
    if cfg.data.preview:  # drawn samples are a result of the data and the seed
        unused -= {"data", "seed"}
    if cfg.latency:  # so are the archs that are drawn to be timed
        unused -= {"seed"}
    for key in cfg:
        if key not in unused:
            _flatten(cfg, str(key), str(key), flat)
    # JSON knows no infinity, which is a sensible value of a limit: it becomes a word
    return json.loads(json.dumps(flat, default=str), parse_constant=str)


def _flatten(parent: DictConfig, key: str, path: str, flat: dict[str, Any]) -> None:
    if path in SHOWN_ONLY:
        return
    try:
        value = parent[key]
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        raise ConfigError(f"expected a value for {path}, got none: add {path}=... to the command") from error
    if isinstance(value, DictConfig):
        for child in value:
            _flatten(value, str(child), f"{path}.{child!s}", flat)
    else:
        flat[path] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def config_sha256(cfg: DictConfig) -> str:
    """The hash of `identity`."""
    return hashlib.sha256(json.dumps(identity(cfg), sort_keys=True).encode()).hexdigest()


def run_name(*, _root_: DictConfig) -> str:
    """Resolver of ``${run_name:}``: the arch, so that a person finds the folder, and 8 digits of the hash.

    A configuration that misses a value gets the name ``incomplete``; the run itself then says what is missing.
    """
    try:
        digest = config_sha256(_root_)
    except ConfigError:
        return "incomplete"
    arch = Path(str(_root_.arch)).stem
    return f"{arch}-{digest[:8]}"


@dataclass(frozen=True)
class RunDirectory:
    """A folder that belongs to one configuration."""

    folder: Path

    def result(self) -> Result | None:
        """What a finished run wrote, None before that."""
        return read_result(self.folder)


def open_run(cfg: DictConfig, hydra_cfg: DictConfig) -> RunDirectory:
    """Claim the run's folder, or find that it is this configuration's already.

    Raises:
        ConfigError: a value that must be set is missing.
        RunError: the folder holds another configuration's run or a result of unknown origin (nothing in it is changed),
            or any run with resume=never.
    """
    if cfg.resume not in ("auto", "never"):
        raise ConfigError(f"expected resume=auto or resume=never, got resume={cfg.resume}")
    folder = Path(cfg.run_dir)
    try:
        own = identity(cfg)
    except ConfigError:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra made it before anything could be checked
        raise
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_same(folder, manifest.config, own, cfg.resume)
        return RunDirectory(folder)
    if not _is_main_process():
        return RunDirectory(folder)
    if (folder / files.RESULT).exists():
        raise RunError(f"expected {files.RUN} beside {files.RESULT} in {folder}, got none: choose another name=...")
    (folder / files.HYDRA_FOLDER).mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / files.CONFIG)
    OmegaConf.save(hydra_cfg, folder / files.HYDRA_CONFIG)
    OmegaConf.save(hydra_cfg.overrides.task, folder / files.OVERRIDES)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    Manifest(config_sha256(cfg), started, tuple(sys.argv[1:]), own).write(folder)
    return RunDirectory(folder)


def log_to(folder: Path) -> None:
    """Append this process's log to ``log.txt`` in the run's folder; done once the folder is known to be the run's."""
    handler = logging.FileHandler(folder / files.LOG)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s] %(message)s"))
    logging.getLogger().addHandler(handler)


def _check_same(folder: Path, theirs: Mapping[str, object], own: dict[str, Any], resume: str) -> None:
    for key in sorted(set(theirs) | set(own)):
        if theirs.get(key) != own.get(key):
            raise RunError(
                f"expected {folder} to be empty or this configuration's, got a run with {key}={theirs.get(key)} "
                f"(now {own.get(key)}): choose another name=... or leave name out"
            )
    if resume == "never" and _is_main_process():
        raise RunError(f"expected no run in {folder} with resume=never, got one: use resume=auto or another name=...")


def _is_main_process() -> bool:
    """Whether this is the only process or rank 0: Lightning's and SLURM's other ranks start with the same command."""
    return all(os.environ.get(variable, "0") == "0" for variable in RANKS)
