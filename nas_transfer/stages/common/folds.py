"""Requirements of cross-validation in a search."""

from __future__ import annotations

from pathlib import Path

from nas_transfer.errors import ConfigError
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.stages.config.trained import trained_config
from nas_transfer.tasks.checkpoint import Checkpoint


def require_unseen(config: SearchConfig, checkpoint: Checkpoint) -> None:
    """Require weights that were not trained on the images of this search: each is scored, in one of the folds.

    Raises:
        ConfigError: the weights are those of one whole network, or of a run on the same dataset.
    """
    trained = trained_config(config.weights)
    same = trained is not None and Path(str(trained.data.root)).resolve() == Path(str(config.data["root"])).resolve()
    if checkpoint.arch is None and not same:
        return
    raise ConfigError(
        f"search.folds scores trials on all images of train, which the network in {config.weights} was trained on: "
        "remove search.folds to score on the search split, or name weights that saw none of these images"
    )
