"""Small commands for every stage, and a folder in which all of them can run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from hostile.attempts import Ended, fault, run_command

COMMON = [
    "task=shapes_cls", "data.root=data", "data.draw.num_train=24", "data.draw.num_val=6", "data.draw.image_size=48",
    "data.image_size=48", "data.batch_size=6", "data.split.search_fraction=0.3", "calibration_images=6",
    "num_threads=1", "trainer.enable_progress_bar=false", "seed=1", "name=mine",
]  # fmt: skip
PARENT = "runs/pretrain/shapes_cls/parent"
NET = "runs/pretrain/shapes_cls/net"
SEARCH = ["search.trials=4", "search.ask_batch=2", "search.sampler.num_random=2", "search.frozen={resolution: 48}"]
PARENT_COMMAND = ["stage=pretrain", *COMMON, "name=parent", "arch=supernet", "trainer.max_steps=2"]
NET_COMMAND = ["stage=pretrain", *COMMON, "name=net", "arch=min", "trainer.max_steps=2"]
STAGES: dict[str, list[str]] = {
    "pretrain": ["stage=pretrain", *COMMON, "arch=min", "trainer.max_steps=6", "checkpoint_every_n_steps=2"],
    "search": ["stage=search", *COMMON, f"weights={PARENT}", *SEARCH],
    "proxy": ["stage=proxy", *COMMON, f"weights={PARENT}", *SEARCH, "proxy.rungs=[1,2]", "proxy.warmup_steps=1"],
    "evaluate": ["stage=evaluate", *COMMON, f"weights={NET}"],
    "predict": ["stage=predict", f"weights={NET}", "images=data/val", "num_threads=1", "name=mine"],
    "profile": ["stage=profile", *COMMON, "arch=min", "preview=2"],
    "check": ["stage=check", *COMMON, "trainer.max_steps=2", "arch=min"],
    "report": ["stage=report", "name=mine"],
    "export": ["stage=export", f"weights={NET}", "num_threads=1", "name=mine"],
}
ODDS = {"pretrain": 4, "search": 4, "proxy": 2}
"""How often a stage is chosen, 1 for others."""
SAME = {
    "pretrain": "result.json", "search": "front.json", "proxy": "front.json", "evaluate": "result.json",
    "predict": "predictions.csv",
}  # fmt: skip
"""The file that an interrupted and repeated command leaves as one that was not interrupted."""


class Ground:
    """A folder with data and trained networks, of which every attempt gets a copy.

    Attributes:
        folder: it.
        seconds: how long each stage takes, measured when it is first needed.
        left: what it leaves in the file of `SAME`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ground"
        self.work = folder / "work"
        self.folder.mkdir()
        self.seconds: dict[str, float] = {}
        self.left: dict[str, object] = {}
        for command in (PARENT_COMMAND, NET_COMMAND):
            self._must_end(run_command(self.folder, command))

    def copy(self) -> Path:
        """A fresh copy of the folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.folder, self.work, symlinks=True)
        return self.work

    def whole(self, stage: str) -> tuple[float, object]:
        """The duration of a stage that nothing interrupts, and what it leaves."""
        if stage not in self.seconds:
            folder = self.copy()
            started = time.monotonic()
            self._must_end(run_command(folder, STAGES[stage]))
            self.seconds[stage] = time.monotonic() - started
            self.left[stage] = left_by(stage, folder)
        return self.seconds[stage], self.left[stage]

    def _must_end(self, ended: Ended) -> None:
        wrong = fault(ended, (0,))
        if wrong:
            raise RuntimeError(f"the campaign cannot begin: {wrong}\n{ended.errors}")


def left_by(stage: str, folder: Path) -> object:
    """What a command has left, without times and paths."""
    if stage not in SAME:
        return None
    (path,) = folder.glob(f"runs/{stage}/*/mine/{SAME[stage]}")
    text = path.read_text()
    if SAME[stage] != "result.json":
        return text
    result = json.loads(text)
    return {key: result[key] for key in ("metrics", "arch", "score", "samples_digest", "costs")}
