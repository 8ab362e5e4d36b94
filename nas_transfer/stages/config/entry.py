"""Read the configuration of a stage into its record, and open its run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import TypeVar, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import files
from nas_transfer.runs.lock import run_lock
from nas_transfer.stages.common.kept import CURRENT
from nas_transfer.stages.common.run_directory import RunDirectory, is_main_process, open_run, set_aside
from nas_transfer.stages.config import reader
from nas_transfer.stages.config.base import RunConfig, TaskRunConfig
from nas_transfer.stages.config.heads import GROUPS, one_choice, require_fitting_heads
from nas_transfer.stages.config.training import TrainConfig

Config = TypeVar("Config", bound=RunConfig)

SHARED_KEYS = frozenset(field.name for field in dataclasses.fields(TrainConfig))
"""The keys of ``config.yaml``, which every composed configuration has, even if its stage does not use them."""


def read_config(cfg: DictConfig, record: type[Config], *, imports: bool = True) -> Config:
    """The configuration of a stage as its record; see `reader.read`.

    Raises:
        ConfigError: the configuration is invalid; the message lists all faults.
    """
    config = reader.read(cfg, record, SHARED_KEYS, imports=imports)
    return dataclasses.replace(config, identity=reader.identity(cfg, record, SHARED_KEYS))


def record_of(cfg: DictConfig) -> type[RunConfig]:
    """The record that the configuration's stage names."""
    name = OmegaConf.select(cfg, "stage.config") if OmegaConf.is_dict(cfg.stage) else None
    try:
        record = resolve_name(str(name))
    except (ImportError, AttributeError, ValueError):
        record = None
    if not (isinstance(record, type) and issubclass(record, RunConfig)):
        raise ConfigError(f"stage.config must name a subclass of {RunConfig.__module__}.RunConfig, got {name}")
    return record


@contextmanager
def begin_run(cfg: DictConfig, hydra_cfg: DictConfig, *, imports: bool) -> Iterator[tuple[RunConfig, RunDirectory]]:
    """Read the configuration, then create the run folder, or open it if it belongs to the same configuration.

    The folder is locked until the block ends, except by ranks that do not write. With ``resume=never`` an earlier run
    in it is set aside.

    Args:
        imports: see `reader.read`; a new run is always checked in this way.

    Raises:
        ConfigError: the configuration is invalid; no folder is left behind.
        RunError: the folder holds another run; BusyError if another process runs in it.
    """
    try:
        _refuse_repeated_choices(hydra_cfg)
        is_new = not (Path(str(cfg.run_dir)) / files.RUN).is_file()
        config = _read_with_heads(cfg, hydra_cfg, imports=imports or is_new)
    except ConfigError:
        folder = Path(str(cfg.run_dir))
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra made it before anything could be checked
        raise
    texts = texts_of(cfg, hydra_cfg)
    if not is_main_process():
        yield config, open_run(config, texts)
        return
    if config.resume == "never":
        set_aside(config.folder)
    with run_lock(config.folder):
        CURRENT.begin(config.folder)
        yield config, open_run(config, texts)


def _read_with_heads(cfg: DictConfig, hydra_cfg: DictConfig, *, imports: bool) -> RunConfig:
    """The configuration as its record; a head that the task does not take is the only fault that is reported."""
    record, choices = record_of(cfg), cast(Mapping[str, str], OmegaConf.select(hydra_cfg, "runtime.choices") or {})
    try:
        config = read_config(cfg, record, imports=imports)
    except ConfigError:
        if issubclass(record, TaskRunConfig):
            require_fitting_heads(cfg, choices)
        raise
    if imports and issubclass(record, TaskRunConfig):
        require_fitting_heads(cfg, choices)
    return config


def joined_run(cfg: DictConfig, hydra_cfg: DictConfig) -> RunConfig:
    """Read the configuration for a run that another process has begun, without its lock.

    Raises:
        ConfigError: the configuration is invalid.
        RunError: the folder holds a run of another configuration, or what it has read has changed.
    """
    config = read_config(cfg, record_of(cfg))
    open_run(config, texts_of(cfg, hydra_cfg))
    return config


def _refuse_repeated_choices(hydra_cfg: DictConfig) -> None:
    """Refuse ``objective=[score,score]``, of which Hydra would silently take one, and a list of heads."""
    given = OmegaConf.to_container(hydra_cfg.overrides.task)
    for override in OverridesParser.create().parse_overrides(cast(list[str], given)):
        group, names = override.key_or_group, override.value()
        if not isinstance(names, list) or not (conf_dir() / group).is_dir():
            continue
        if group in GROUPS:
            raise ConfigError(one_choice(group, f"[{','.join(map(str, names))}]"))
        repeated = [name for position, name in enumerate(names) if name in names[:position]]
        if repeated:
            raise ConfigError(f"{group} must not repeat a choice, got {repeated[0]} twice: name each one once")


def identity(cfg: DictConfig) -> dict[str, object]:
    """The keys that change the run's result; see `reader.identity`."""
    return reader.identity(cfg, record_of(cfg), SHARED_KEYS)


def config_sha256(cfg: DictConfig) -> str:
    """The hash of `identity`."""
    return reader.sha256_of(identity(cfg))


def run_name(*, _root_: DictConfig) -> str:
    """Resolve ``${run_name:}``: the arch and 8 digits of the hash.

    An invalid configuration gets the name ``incomplete``; its run then reports the faults.
    """
    try:
        digest = config_sha256(_root_)
    except ConfigError:
        return "incomplete"
    arch = Path(str(_root_.arch)).stem
    return f"{arch}-{digest[:8]}"


def texts_of(cfg: DictConfig, hydra_cfg: DictConfig) -> dict[str, str]:
    """The configuration files of a run, by path in its folder."""
    return {
        files.CONFIG: OmegaConf.to_yaml(cfg),
        files.HYDRA_CONFIG: OmegaConf.to_yaml(hydra_cfg),
        files.OVERRIDES: OmegaConf.to_yaml(hydra_cfg.overrides.task),
    }
