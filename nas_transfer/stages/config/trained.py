"""The configuration of a finished run, for stages that use its network: its task, data and supernet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas_transfer.errors import ConfigError
from nas_transfer.runs import files
from nas_transfer.runs.batch_size import read_batch_size
from nas_transfer.stages.config.factory import AUTO
from nas_transfer.stages.config.trusted import (
    require_drawn_nearby,
    require_folder_name,
    require_inside,
    require_plain_values,
    require_trusted,
    trust_of,
)

TRAINED_GROUPS = ("task", "supernet", "data", "seed")
"""Groups and keys that must be those with which the network was trained."""
NAMING_GROUPS = ("task", "supernet", "experiment")
"""Groups by which a command says itself what network it means."""
OWN_FOLDER = ("name", "run_dir")
"""Keys that stay those of the command. They follow from the hash of its keys, which the groups of the run change."""
CALIBRATION = "calibration_images"
"""The key with which the BatchNorm statistics of a subnet, and so its score, vary; another value may be given."""
MOST_BYTES = 1 << 20


def trained_config(weights: str | None) -> DictConfig | None:
    """The configuration of the run that `weights` names by its folder or a file in it; None for other weights.

    Its groups refer to keys alone. Whether its classes can be trusted is for `with_trained_groups` to check.

    Raises:
        ConfigError: the file is no configuration of a run.
    """
    file = _config_file(weights)
    if file is None:
        return None
    with _readable(file):
        cfg = _plain_yaml(file)
        content = cast(dict[str, object], OmegaConf.to_container(cfg, resolve=False))
        require_plain_values({key: content[key] for key in (*TRAINED_GROUPS, CALIBRATION) if key in content}, file)
        require_folder_name(cfg.task.name, "task.name", file)
    return cfg


def _config_file(weights: str | None) -> Path | None:
    path = Path(str(weights))
    file = (path if path.is_dir() else path.parent) / files.CONFIG
    return file if weights is not None and file.is_file() else None


def _plain_yaml(file: Path) -> DictConfig:
    """The mapping in a YAML file without aliases, which could make a small file huge."""
    with file.open("rb") as stream:
        text = stream.read(MOST_BYTES + 1).decode("utf-8")
    if len(text) > MOST_BYTES or ("&" in text and any(map(_is_alias, yaml.parse(text, yaml.SafeLoader)))):
        raise ValueError("it is too large, or has aliases")
    cfg = OmegaConf.load(io.StringIO(text))
    if not isinstance(cfg, DictConfig) or not all(OmegaConf.is_dict(cfg.get(key)) for key in TRAINED_GROUPS[:-1]):
        raise ValueError(f"it does not hold {', '.join(TRAINED_GROUPS)}")
    return cfg


def _is_alias(event: yaml.Event) -> bool:
    return isinstance(event, yaml.AliasEvent)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what a damaged configuration of a run raises into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"{file} cannot be used as the configuration of a run ({cause}): train the network again"
        ) from error


def trained_task(weights: str | None, otherwise: str = "unknown") -> str:
    """Resolve ``${trained_task:<weights>,<otherwise>}``: the task of the run with these weights."""
    cfg = trained_config(weights)
    return otherwise if cfg is None else str(cfg.task.name)


def with_trained_groups(cfg: DictConfig) -> DictConfig:
    """The configuration with the `TRAINED_GROUPS` of the run that ``weights`` names; a given ``data.root`` is kept.

    If the weights are not of a run, the configuration is returned unchanged.

    Raises:
        ConfigError: the command line names another task, supernet, data or seed than the run has, the run names a class
            that nobody vouches for, or the weights are not of a run and ``data.root`` is not given.
    """
    trained, file = trained_config(cfg.weights), _config_file(cfg.weights)
    if trained is None or file is None:
        if cfg.data.root is None:
            weights = "null" if cfg.weights is None else cfg.weights
            raise ConfigError(
                f"weights must be a run folder, got {weights}: name one, or set data.root=FOLDER for other weights"
            )
        return cfg
    with _readable(file):
        given = _refuse_others(cfg, trained)
        merged = cast(dict[str, object], OmegaConf.to_container(cfg, resolve=False))
        theirs = cast(dict[str, object], OmegaConf.to_container(trained, resolve=False))
        _fill_added(theirs)
        _fill_batch_size(theirs, file.parent.parent)
        composed = {key: merged[key] for key in TRAINED_GROUPS}
        merged |= {key: theirs[key] for key in TRAINED_GROUPS} | {key: cfg[key] for key in OWN_FOLDER}
        if CALIBRATION in theirs and CALIBRATION not in given:
            merged[CALIBRATION] = theirs[CALIBRATION]
        if cfg.data.root is not None:
            cast(dict[str, object], merged["data"])["root"] = cfg.data.root
        config = OmegaConf.create(merged)
        resolved = {key: _resolved(config, key) for key in TRAINED_GROUPS}
        require_trusted(resolved, file, trust_of(_resolved(cfg, "trust"), composed))
        if cfg.data.root is None:
            require_drawn_nearby(resolved["data"], file)
        elif not any(key.startswith("data.sources") for key in given):
            require_inside(resolved["data"], file)
    return config


def with_trained_task(cfg: DictConfig) -> DictConfig:
    """`with_trained_groups` if the weights are of a run and the command names no task, supernet or experiment.

    Raises:
        ConfigError: as for `with_trained_groups`.
    """
    given = _given_keys()
    if given is None or any(key.partition(".")[0] in NAMING_GROUPS for key in given) or not _config_file(cfg.weights):
        return cfg
    cfg = cfg.copy()
    if "data.root" not in given:
        cfg.data.root = None
    return with_trained_groups(cfg)


def _fill_added(theirs: dict[str, object]) -> None:
    """Add the keys that runs of earlier versions do not have, with the values that mean what these versions did."""
    data = theirs["data"]
    if not isinstance(data, dict):
        return
    data.setdefault("cache_mib", 0)
    split = data.get("split")
    if isinstance(split, dict):
        split.setdefault("val_fraction", None)


def _fill_batch_size(theirs: dict[str, object], folder: Path) -> None:
    """Put the batch size that a run has found in the place of ``auto``."""
    data = theirs["data"]
    if isinstance(data, dict) and data.get("batch_size") == AUTO:
        found = read_batch_size(folder)
        if found is None:
            raise ValueError(f"{folder / files.BATCH_SIZE} is missing")
        data["batch_size"] = found.batch_size


def _resolved(cfg: DictConfig, key: str) -> object:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def changes_since(cfg: DictConfig) -> list[str]:
    """A sentence for each value of ``task.build``, and for `CALIBRATION`, that the run of ``weights`` has otherwise."""
    trained, file = trained_config(cfg.weights), _config_file(cfg.weights)
    if trained is None or file is None:
        return []
    with _readable(file):
        mine, theirs = (
            _flat(OmegaConf.to_container(one.task.build, resolve=True), "task.build") for one in (cfg, trained)
        )
    if CALIBRATION in trained and CALIBRATION in cfg:
        mine[CALIBRATION], theirs[CALIBRATION] = cfg[CALIBRATION], trained[CALIBRATION]
    return [
        f"{key} is {mine.get(key)}, the run in {cfg.weights} had {theirs.get(key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def _flat(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, child in value.items() for key, leaf in _flat(child, f"{path}.{name}").items()}


def _refuse_others(cfg: DictConfig, trained: DictConfig) -> list[str]:
    """Refuse other values than those of the run; returns the keys that the command names."""
    keys = _given_keys() or []
    for key in keys:
        if key.partition(".")[0] not in TRAINED_GROUPS or key == "data.root":
            continue
        mine, theirs = _value(cfg, key), _value(trained, key)
        if mine != theirs:
            raise ConfigError(
                f"{key}={mine} differs from the run in {cfg.weights} ({theirs}): remove {key} from the command"
            )
    return keys


def _given_keys() -> list[str] | None:
    """The keys that the command names; None outside a command."""
    if not HydraConfig.initialized():
        return None
    overrides: Sequence[str] = HydraConfig.get().overrides.task
    return [override.lstrip("+~").partition("=")[0] for override in overrides]


def _value(cfg: DictConfig, key: str) -> object:
    """The value of a key, or the choice of a group."""
    choice = {"task": "task.name", "supernet": "supernet.name", "data": "data._target_"}.get(key, key)
    return OmegaConf.select(cfg, choice)
