"""A run is never continued with other content than it began with: weights, archs, annotations, images."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from nas_transfer.arch import SUPERNET
from nas_transfer.data.synthetic.shapes import draw_shapes
from nas_transfer.errors import RunError
from nas_transfer.runs import Job
from nas_transfer.stages import finetune, pretrain
from nas_transfer.stages import search as search_stage
from nas_transfer.stages.common.build import build_task
from nas_transfer.stages.config.entry import begin_run, read_config
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.sweeper import run_search
from nas_transfer.tasks.checkpoint import save_checkpoint
from tests.stages.test_run_directory import HYDRA, composed, contents

CLASSIFY = [
    "task=shapes_cls", "data.draw=null", "data.root=data", "data.batch_size=4", "num_threads=1", "name=mine",
    "trainer.max_steps=2", "trainer.enable_progress_bar=false", "weights=weights.pt",
]  # fmt: skip
DETECT = ["data.draw=null", "data.root=data", "data.batch_size=2", "num_threads=1", "name=mine", "trainer.max_steps=2"]
SEARCH = ["stage=search", "search.trials=2", "search.ask_batch=2", "search.sampler.num_random=2"]
STAGES = {"pretrain": pretrain.run, "finetune": finetune.run}


class KilledError(Exception):
    """Stands for the end of a process."""


def kill(*_: object, **__: object) -> None:
    raise KilledError


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl.Trainer, "fit", kill)


def draw(layout: str) -> None:
    draw_shapes("data", layout=layout, num_train=12, num_val=4, image_size=48, seed=0)  # type: ignore[arg-type]


def write_weights(seed: int) -> None:
    """Untrained weights of a supernet, which differ by their seed."""
    config = read_config(composed("task=shapes_cls", "arch=supernet", f"seed={seed}"), TrainConfig)
    task = build_task(config, config.supernet.build(), SUPERNET, None)
    save_checkpoint(
        Path("weights.pt"), task, parent=None, metrics={}, versions={}, stage="pretrain", config_sha256=""
    )  # fmt: skip


def start(cfg: DictConfig) -> None:
    """Begin or continue a training, which is killed where its steps begin."""
    with begin_run(cfg, HYDRA, imports=False) as (_, run), pytest.raises(KilledError):
        STAGES[cfg.stage.name](cfg, run.folder)


def refused(cfg: DictConfig) -> str:
    """The sentence with which a run is not continued; its folder stays as it is."""
    folder = Path(cfg.run_dir)
    before = contents(folder)
    with pytest.raises(RunError) as caught, begin_run(cfg, HYDRA, imports=False) as (_, run):
        STAGES[cfg.stage.name](cfg, run.folder)
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    assert "\n" not in str(caught.value)
    assert "resume=never" in str(caught.value)
    return str(caught.value)


def test_a_training_is_not_continued_after_the_file_of_its_weights_has_changed() -> None:
    draw("image_folder")
    write_weights(seed=0)
    cfg = composed("stage=pretrain", "arch=min", *CLASSIFY)
    start(cfg)
    start(cfg)  # nothing has changed
    first = Path("weights.pt").read_bytes()
    write_weights(seed=1)
    assert "weights.pt (weights) has other content" in refused(cfg)
    Path("weights.pt").write_bytes(first)
    start(cfg)


def add_an_image(folder: Path) -> str:
    (folder / "train/circle/another.jpg").write_bytes(next((folder / "train/circle").iterdir()).read_bytes())
    return "train/circle/another.jpg' is new"


def remove_an_image(folder: Path) -> str:
    path = min((folder / "val").rglob("*.jpg"))
    path.unlink()
    return "the images of val"


def change_an_image(folder: Path) -> str:
    path = min((folder / "train").rglob("*.jpg"))
    path.write_bytes(path.read_bytes() + b"\0")
    return f"{path.relative_to(folder)}' has {path.stat().st_size} bytes instead of"


@pytest.mark.parametrize("change", [add_an_image, remove_an_image, change_an_image])
def test_a_training_is_not_continued_with_other_images(change: Callable[[Path], str]) -> None:
    draw("image_folder")
    cfg = composed("stage=pretrain", "arch=min", *CLASSIFY[:-1])
    start(cfg)
    named = change(Path("data"))
    assert named in refused(cfg)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_training_is_not_continued_with_other_annotations(part: str) -> None:
    draw("coco")
    cfg = composed("arch=min", *DETECT)
    start(cfg)
    file = Path(f"data/annotations/instances_{part}2017.json")
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    assert f"{file.name} ({part} annotations) has other content" in refused(cfg)


def test_label_images_count_as_images_do() -> None:
    draw("cityscapes")
    cfg = composed("task=shapes_seg", "arch=min", *DETECT)
    start(cfg)
    path = min(Path("data/gtFine/train").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")
    assert path.name in refused(cfg)


def test_a_training_is_not_continued_with_another_arch_in_the_same_file() -> None:
    draw("image_folder")
    config = read_config(composed("task=shapes_cls"), TrainConfig)
    space = config.supernet.build().space
    Path("mine.yaml").write_text(OmegaConf.to_yaml(space.smallest().to_dict()))
    cfg = composed("stage=pretrain", "arch=mine.yaml", *CLASSIFY[:-1])
    start(cfg)
    Path("mine.yaml").write_text(OmegaConf.to_yaml(space.largest().to_dict()))
    assert "mine.yaml (arch) has other content" in refused(cfg)


def searching(cfg: DictConfig) -> list[Job]:
    """The jobs of a search that is killed when it launches them."""
    jobs: list[Job] = []

    def launch(launched: Sequence[Job]) -> list[str | None]:
        jobs.extend(launched)
        raise KilledError

    with pytest.raises(KilledError):
        run_search(cfg, launch)
    return jobs


def begun_search() -> DictConfig:
    """The configuration of a search that was killed when it launched its first jobs."""
    draw("image_folder")
    write_weights(seed=0)
    cfg = composed(*CLASSIFY, *SEARCH)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = HYDRA
    searching(cfg)
    return cfg


def test_a_search_and_its_jobs_are_not_continued_on_another_supernet() -> None:
    cfg = begun_search()
    jobs = searching(cfg)  # goes on
    write_weights(seed=1)
    with pytest.raises(RunError, match=r"weights\.pt \(weights\) has other content"):
        run_search(cfg, kill)  # type: ignore[arg-type]
    of_job = copy.deepcopy(cfg)
    of_job.search.job = str(jobs[0].path)
    with pytest.raises(RunError, match=r"weights\.pt \(weights\) has other content"):
        search_stage.run(of_job, Path(cfg.run_dir))


def test_a_search_is_not_continued_on_other_images() -> None:
    cfg = begun_search()
    named = add_an_image(Path("data"))
    with pytest.raises(RunError, match=named):
        run_search(cfg, kill)  # type: ignore[arg-type]


@pytest.mark.slow
def test_resume_never_starts_anew_and_keeps_the_earlier_run_beside_it() -> None:
    draw("image_folder")
    write_weights(seed=0)
    cfg = composed("stage=pretrain", "arch=min", *CLASSIFY)
    start(cfg)
    write_weights(seed=1)
    sentence = refused(cfg)
    folder, aside = Path(cfg.run_dir), Path(f"{cfg.run_dir}.1")
    assert f"keeps the run in {aside}" in sentence
    before = {path.relative_to(folder): text for path, text in contents(folder).items()}
    cfg.resume = "never"
    start(cfg)
    assert {path.relative_to(aside): text for path, text in contents(aside).items()} == before
    recorded, earlier = (json.loads((path / "inputs.json").read_text()) for path in (folder, aside))
    assert recorded["files"]["weights"]["sha256"] != earlier["files"]["weights"]["sha256"]
    cfg.resume = "auto"
    start(cfg)  # goes on with the new weights


def test_a_result_is_not_shown_for_other_weights_but_for_weights_that_are_gone() -> None:
    draw("image_folder")
    write_weights(seed=0)
    cfg = composed("stage=pretrain", "arch=min", *CLASSIFY)
    start(cfg)
    content = Path("weights.pt").read_bytes()
    write_weights(seed=1)
    with pytest.raises(RunError, match="weights"), begin_run(cfg, HYDRA, imports=False):
        pass
    Path("weights.pt").unlink()
    with begin_run(cfg, HYDRA, imports=False):
        pass
    Path("weights.pt").write_bytes(content)
    with begin_run(cfg, HYDRA, imports=False):
        pass


def test_the_name_of_the_weights_in_a_result_is_that_of_the_content_that_was_read() -> None:
    write_weights(seed=0)
    config = read_config(composed("task=shapes_cls"), TrainConfig)
    from nas_transfer.tasks.checkpoint import load_checkpoint

    checkpoint = load_checkpoint("weights.pt", config.supernet.build())
    read = checkpoint.lineage()[-1].sha256
    write_weights(seed=1)
    assert checkpoint.lineage()[-1].sha256 == read
    assert torch.load("weights.pt", weights_only=True)["provenance"] == []
