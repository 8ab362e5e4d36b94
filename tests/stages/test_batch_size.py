"""``data.batch_size=auto``: what fits, found once, and used by everything that uses the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.batch_size import largest_batch
from nas_transfer.stages.common.build import (
    build_arch,
    build_bare_trainer,
    build_data,
    build_task,
    build_training_settings,
    build_weights,
)
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.tasks.training import TaskModule
from tests.test_cli import forked, sentence

TINY = [
    "task=shapes_cls", "data.draw.num_train=60", "data.draw.num_val=12", "data.draw.image_size=48", "num_threads=1",
    "data.image_size=48", "trainer.enable_progress_bar=false", "arch=min",
]  # fmt: skip


@pytest.mark.parametrize(("fits", "most", "expected"), [(4, 60, 4), (99, 13, 8)])
def test_the_largest_batch_is_the_last_one_that_did_not_run_out_of_memory(
    tmp_path: Path, fits: int, most: int, expected: int
) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["stage=pretrain", *TINY, f"data.root={tmp_path}/data", "trainer.accelerator=cpu"])
    config = read_config(cfg, TrainConfig)
    table, _ = build_weights(config)
    arch = build_arch(config, table)
    data = build_data(config.data.with_values(batch_size=1), arch, table.preprocessing)
    tried = []

    class Limited(TaskModule):
        """A module for which a device has memory for some samples."""

        def training_step(self, batch: Mapping[str, Any], batch_index: int) -> None:
            tried.append(len(batch["images"]))
            if tried[-1] > fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            super().training_step(batch, batch_index)

    module = Limited(build_task(config, table, arch, data), build_training_settings(config, 3, 1))
    trainer = build_bare_trainer(config.trainer, 3, folder=tmp_path)
    assert largest_batch(trainer, module, data, most) == expected
    assert max(tried) <= most
    assert not list(tmp_path.glob(".scale*"))


@pytest.mark.slow
def test_a_run_keeps_the_batch_size_that_it_found(tmp_path: Path) -> None:
    common = [*TINY, "data.batch_size=auto", "trainer.max_steps=2", "name=mine"]
    done = forked(tmp_path, "stage=pretrain", *common, "trainer.accelerator=cpu")
    run = tmp_path / "runs/pretrain/shapes_cls/mine"
    size = json.loads((run / "batch_size.json").read_text())["batch_size"]
    assert f"data.batch_size=auto: {size} on a CPU" in done.stdout
    assert json.loads((run / "result.json").read_text())["images_seen"] == 2 * size
    predicted = forked(
        tmp_path, "stage=predict", f"weights={run}", f"images={tmp_path}/data/shapes_cls", "max_frames=1"
    )
    assert "72 images of" in predicted.stdout
    refused = forked(tmp_path, "stage=evaluate", *TINY, "data.batch_size=auto", f"weights={run}", code=2)
    assert "name a number" in sentence(refused)
