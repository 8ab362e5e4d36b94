"""The configuration of a finished run, for stages that use its network: its task, data and supernet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nas_transfer.errors import ConfigError
from nas_transfer.runs import files

TRAINED_GROUPS = ("task", "supernet", "data", "seed")
"""Groups and keys that must be those with which the network was trained."""


def trained_config(weights: str | None) -> DictConfig | None:
    """The configuration of the run that `weights` names by its folder or a file in it; None for other weights."""
    path = Path(str(weights))
    file = (path if path.is_dir() else path.parent) / files.CONFIG
    if weights is None or not file.is_file():
        return None
    return cast(DictConfig, OmegaConf.load(file))


def trained_task(weights: str | None, otherwise: str = "unknown") -> str:
    """Resolve ``${trained_task:<weights>,<otherwise>}``: the task of the run with these weights."""
    cfg = trained_config(weights)
    return otherwise if cfg is None else str(cfg.task.name)


def with_trained_groups(cfg: DictConfig) -> DictConfig:
    """The configuration with the `TRAINED_GROUPS` of the run that ``weights`` names; a given ``data.root`` is kept.

    If the weights are not of a run, the configuration is returned unchanged.

    Raises:
        ConfigError: the command line names another task, supernet, data or seed than the run has, or the weights are
            not of a run and ``data.root`` is not given.
    """
    trained = trained_config(cfg.weights)
    if trained is None:
        if cfg.data.root is None:
            weights = "null" if cfg.weights is None else cfg.weights
            raise ConfigError(
                f"weights must be a run folder, got {weights}: name one, or set data.root=FOLDER for other weights"
            )
        return cfg
    _refuse_others(cfg, trained)
    merged = cast(dict[str, object], OmegaConf.to_container(cfg, resolve=False))
    theirs = cast(dict[str, object], OmegaConf.to_container(trained, resolve=False))
    merged |= {key: theirs[key] for key in TRAINED_GROUPS}
    if cfg.data.root is not None:
        cast(dict[str, object], merged["data"])["root"] = cfg.data.root
    return OmegaConf.create(merged)


def changes_since(cfg: DictConfig) -> list[str]:
    """A sentence for each value of ``task.build`` that differs from the run that ``weights`` names."""
    trained = trained_config(cfg.weights)
    if trained is None:
        return []
    mine, theirs = (_flat(OmegaConf.to_container(one.task.build, resolve=True), "task.build") for one in (cfg, trained))
    return [
        f"{key} is {mine.get(key)}, the run in {cfg.weights} had {theirs.get(key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def _flat(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, child in value.items() for key, leaf in _flat(child, f"{path}.{name}").items()}


def _refuse_others(cfg: DictConfig, trained: DictConfig) -> None:
    given: Sequence[str] = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in given:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in TRAINED_GROUPS or key == "data.root":
            continue
        mine, theirs = _value(cfg, key), _value(trained, key)
        if mine != theirs:
            raise ConfigError(
                f"{key}={mine} differs from the run in {cfg.weights} ({theirs}): remove {key} from the command"
            )


def _value(cfg: DictConfig, key: str) -> object:
    """The value of a key, or the choice of a group."""
    choice = {"task": "task.name", "supernet": "supernet.name", "data": "data._target_"}.get(key, key)
    return OmegaConf.select(cfg, choice)
