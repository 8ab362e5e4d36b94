"""The examples of what users add, docs/examples, are complete: copied into a folder, they work as they stand."""

import csv
import json
import operator
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import nas_transfer as nt
from nas_transfer.arch import SUPERNET
from nas_transfer.data.coco_annotations import decode_mask, read_coco
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.paths import conf_dir
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import History
from nas_transfer.stages import export, predict
from nas_transfer.stages.common.build import build_data, build_task
from nas_transfer.stages.config.base import DataRunConfig, TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.tasks.task import Teacher
from tests.conftest import REPOSITORY
from tests.docs.pages import blocks
from tests.stages.test_search import CLASSIFY, arguments, supernet
from tests.test_cli import forked

__all__ = ["supernet"]  # a fixture
EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the example files of the documentation."""
    for path in EXAMPLES.rglob("*.*"):
        if path.suffix in (".py", ".yaml"):
            target = tmp_path / path.relative_to(EXAMPLES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tmp_path


def test_the_annotation_file_on_the_page_is_complete_and_can_be_split(tmp_path: Path) -> None:
    page = Path("docs/guide/your_data.md")
    content = json.loads(next(block.text for block in blocks(page) if block.language == "json"))
    (tmp_path / "all.json").write_text(json.dumps(content))
    read = read_coco(tmp_path / "all.json", need_masks=True, skip_empty_boxes=False)
    assert [len(records) for records in read.annotations] == [1]
    mask = decode_mask(read.annotations[0][0]["segmentation"], 480, 640)
    assert mask.sum() == pytest.approx(content["annotations"][0]["area"], rel=0.02)

    several = [{**content["images"][0], "id": number, "file_name": f"{number}.jpg"} for number in range(20)]
    boxes = [{**content["annotations"][0], "id": number, "image_id": number} for number in range(20)]
    (tmp_path / "all.json").write_text(json.dumps({**content, "images": several, "annotations": boxes}))
    subprocess.run([sys.executable, EXAMPLES / "split_coco.py", tmp_path / "all.json"], check=True)
    parts = {
        part: read_coco(tmp_path / f"annotations/instances_{part}.json", need_masks=False, skip_empty_boxes=False)
        for part in ("train", "val")
    }
    ids = {part: {image.image_id for image in file.images} for part, file in parts.items()}
    assert {part: len(numbers) for part, numbers in ids.items()} == {"train": 17, "val": 3}
    assert ids["train"] | ids["val"] == set(range(20))
    assert all(len(records) == 1 for file in parts.values() for records in file.annotations)


@pytest.mark.slow
def test_an_objective_of_ones_own_is_searched_and_limited(folder: Path, supernet: Path) -> None:
    limits = ["objective=[score,blocks]", "search.constraints={blocks: {max: 9}}", "search.trials=8", "name=mine"]
    forked(folder, "--config-dir", "mine", *arguments(supernet, *limits))
    front = json.loads((folder / "runs/search/shapes_cls/mine/front.json").read_text())
    assert front["objectives"] == {"score": "maximize", "blocks": "minimize"}
    for member in front["trials"]:
        assert member["values"]["blocks"] == sum(member["arch"]["depth"]) <= 9


@pytest.mark.slow
def test_a_supernet_of_ones_own_is_profiled(folder: Path) -> None:
    done = forked(folder, "--config-dir", "mine", "stage=profile", "task=shapes_cls", "supernet=tiny", "arch=max")
    assert "s4.1" in done.stdout


def test_a_sampler_of_ones_own_proposes_neighbours_of_the_front(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    config = read_config(
        composed(folder, "task=shapes_cls", "stage=search", "sampler=local_search", "weights=none"), SearchConfig
    )
    space = config.supernet.build().space
    sampler = config.search.sampler.build()(problem=Problem(space), seed=0)
    history = History()
    good, bad = space.sample(np.random.default_rng(1)), space.sample(np.random.default_rng(2))
    history.add(good, [0.1, 1.0])
    history.add(bad, [0.2, 2.0])
    proposed = [sampler.next_arch(history, number) for number in range(2, 40)]
    changed = [
        [sum(map(operator.ne, arch.values, other.values)) / len(arch.values) for arch in proposed]
        for other in (good, bad)
    ]
    assert np.mean(changed[0]) < 0.15 < np.mean(changed[1])
    assert proposed[0] == sampler.next_arch(history, 2)


def test_a_data_layout_of_ones_own_is_read_and_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    for part, count in {"train": 20, "val": 4}.items():
        for number in range(count):
            Image.new("RGB", (40, 30), (10 * number, 0, 0)).save(folder / f"{part}{number}.png")
        lines = [f"{part}{number}.png,{'ab'[number % 2]}" for number in range(count)]
        (folder / f"{part}.csv").write_text("\n".join(lines))
    overrides = ["task=shapes_cls", "data=listed", f"data.root={folder}", "arch=max", "data.batch_size=4"]
    config = read_config(composed(folder, *overrides), DataRunConfig)
    table = config.supernet.build()
    data = build_data(config.data, table.space.largest(), table.preprocessing)
    assert data.vocabulary.names == ("a", "b")
    assert data.num_train_images == 20
    assert [batch["labels"].tolist() for batch in data.val_dataloader()] == [[0, 1, 0, 1]]
    (folder / "train.csv").write_text("train0.png,c")
    with pytest.raises(DataError, match="same classes"):
        build_data(config.data, table.space.largest(), table.preprocessing).require_parts()


def composed(folder: Path, *overrides: str) -> DictConfig:
    """The configuration as `--config-dir mine` makes it in the folder."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [f"hydra.searchpath=[file://{folder}/mine]", *overrides])


def test_a_task_of_ones_own_is_extracted_as_it_is_and_costs_what_torch_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    cfg = composed(folder, "task=grades")
    config = read_config(cfg, TaskRunConfig)
    task = build_task(config, config.supernet.build(), SUPERNET, None).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    batch = {"images": images, "labels": torch.tensor([0, 5, 2, 3])}
    space = task.table.space
    archs = [space.smallest(), space.largest(), *(space.sample(np.random.default_rng(seed)) for seed in range(2))]
    totals = task.cost_totals(archs)
    for place, arch in enumerate(archs):
        subnet = task.extract(arch)
        task.set_arch(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        ours, theirs = (module.eval().forward_batch(batch) for module in (task, subnet))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        teacher = Teacher(torch.full_like(ours, 2.5), share=0.5)
        ours, theirs = (module.train().losses(batch, regularise=False, teacher=teacher)[0] for module in (task, subnet))
        assert set(ours) == {"grades", "distillation"}
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet.eval().network(torch.zeros(1, 3, 64, 64, dtype=torch.float64))
        costs = task.costs(arch)
        assert counter.get_total_flops() // 2 == costs["body"].macs + costs["head"].macs == totals.macs[place]
        counted = sum(parameter.numel() for parameter in subnet.network.parameters())
        assert counted == costs["body"].params + costs["head"].params == totals.params[place]


@pytest.mark.nightly
def test_a_task_of_ones_own_is_trained_searched_exported_and_predicts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    own = [*CLASSIFY, "task=grades", f"data.root={folder}/data", "trainer.enable_progress_bar=false"]
    trained = folder / "runs/finetune/grades/all"
    steps = ["trainer.max_steps=3", "task.recipe.warmup_steps=1"]
    forked(folder, "--config-dir", "mine", *own, "arch=supernet", *steps, "name=all")
    scores = json.loads((trained / "result.json").read_text())["metrics"]
    assert scores["closeness"] == scores["max/closeness"] != scores["min/closeness"]

    searching = ["stage=search", f"weights={trained}", "search.trials=4", "search.sampler.num_random=4", "name=all"]
    forked(folder, "--config-dir", "mine", *own, *searching)
    search = folder / "runs/search/grades/all"
    outcomes = [json.loads(path.read_text()) for path in (search / "trials").glob("*.json")]
    best = json.loads((search / "front.json").read_text())["trials"][0]
    assert len(outcomes) == 4
    assert best["values"]["score"] == max(outcome["values"]["score"] for outcome in outcomes)

    picked = [f"weights={trained}", f"arch={search}/archs/picked.yaml", "num_threads=1", "calibration_images=12"]
    exporting = composed(folder, *own, "stage=export", *picked)
    for name in ("exported", "predicted"):
        (folder / name).mkdir()
    exported = export.run(exporting, folder / "exported")
    assert exported.export is not None
    assert max(exported.export.difference.values()) < 1e-4
    predicting = ["stage=predict", f"images={folder}/data/val", *picked]
    with pytest.raises(ConfigError, match=r"task\.build\._target_ in .* names grades\.GradesTask.* trust=\[grades\]"):
        predict.run(composed(folder, *predicting), folder / "predicted")
    predict.run(composed(folder, *predicting, "trust=[grades]"), folder / "predicted")
    with pytest.raises(ConfigError, match=r"names grades\.GradesTask"):
        nt.load(trained)
    network = nt.load(trained, arch=f"{search}/archs/picked.yaml", trust=["grades"])
    assert network.task.kind.name == "grades"
    with (folder / "predicted/predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted(path.name for path in (folder / "data/train").iterdir())
    distances = [abs(float(row["grade"]) - names.index(Path(row["file_name"]).parent.name)) for row in rows]
    assert len(distances) == 12
    assert 0 < exported.export.score_torch < 1
    assert exported.export.score_torch == pytest.approx(1 - np.mean(distances) / 5, abs=1e-5)
