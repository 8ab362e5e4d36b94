"""From one trained network to a front of repaired ones: search, score, train on, export and predict."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from nas_transfer.runs import files, read_front
from tests.test_cli import forked, sentence

SETTINGS = [
    "task=shapes_cls", "data.draw.num_train=60", "data.draw.num_val=12", "data.draw.image_size=48",
    "data.batch_size=10", "data.image_size=48", "data.split.search_fraction=0.3", "data.split.hold_out_search=true",
    "calibration_images=12", "repair_views=60", "num_threads=1", "seed=1", "runs=runs", "sample_predictions=0",
    "supernet.resolutions=[32,48]",
]  # fmt: skip
WHOLE = "runs/pretrain/shapes_cls/whole"
SEARCH = [
    "stage=search", f"weights={WHOLE}", "search.ask_batch=6", "search.sampler.num_random=6", "search.trials=8",
    "name=all",
]  # fmt: skip
FOLDER = "runs/search/shapes_cls/all"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained whole network and a search of its subnets."""
    folder = tmp_path_factory.mktemp("whole")
    forked(folder, *SETTINGS, "stage=pretrain", "name=whole", "trainer.max_steps=6")
    forked(folder, *SETTINGS, *SEARCH)
    return folder


def score_of(folder: Path, run: str) -> float:
    return json.loads((folder / run / files.RESULT).read_text())["score"]


@pytest.mark.slow
def test_every_network_of_the_front_is_a_run_folder_that_scores_what_the_arch_scores(folder: Path) -> None:
    front = read_front(folder / FOLDER)
    kept = sorted(path.name for path in (folder / FOLDER / files.NETWORKS_FOLDER).iterdir() if path.is_dir())
    assert kept == sorted(f"trial_{trial.number}" for trial in front.trials)
    trial = front.trials[-1]
    network = f"{FOLDER}/{files.NETWORKS_FOLDER}/trial_{trial.number}"
    forked(folder, *SETTINGS, "stage=evaluate", "name=network", f"weights={network}")
    forked(folder, *SETTINGS, "stage=evaluate", "name=arch", f"weights={WHOLE}", f"arch={FOLDER}/{trial.file}")
    scores = [score_of(folder, f"runs/evaluate/shapes_cls/{name}") for name in ("network", "arch")]
    assert scores[0] == scores[1]
    outcome = json.loads((folder / FOLDER / files.network_outcome(trial.number)).read_text())
    assert outcome["values"] == dict(trial.values)  # the same network was scored in the search
    weights = torch.load(folder / network / files.WEIGHTS)
    assert weights["arch"] == dict(trial.arch)
    assert [Path(ancestor["file"]).parent.name for ancestor in weights["provenance"]] == ["whole"]


@pytest.mark.slow
def test_a_network_is_repaired_once_for_several_input_sizes(folder: Path) -> None:
    forked(folder, *SETTINGS, *SEARCH, "search.variants=1", "search.trials=7", "name=variants")
    run = folder / "runs/search/shapes_cls/variants"
    first, second = (json.loads((run / files.trial_file(number)).read_text()) for number in (3, 4))
    assert {name for name in first["arch"] if first["arch"][name] != second["arch"][name]} == {"resolution"}
    for trial in read_front(run).trials:
        kept = json.loads((run / files.network_outcome(trial.number)).read_text())
        assert kept["values"] == dict(trial.values)


@pytest.mark.slow
def test_the_whole_network_is_scored_at_another_resolution_as_it_is(folder: Path) -> None:
    weights = torch.load(folder / WHOLE / files.WEIGHTS)
    (folder / "small.yaml").write_text(yaml.safe_dump({**weights["arch"], "resolution": 32}))
    done = forked(folder, *SETTINGS, "stage=evaluate", "name=small", f"weights={WHOLE}", "arch=small.yaml")
    assert "is ignored" not in done.stdout + done.stderr
    result = json.loads((folder / "runs/evaluate/shapes_cls/small" / files.RESULT).read_text())
    assert result["arch"]["resolution"] == 32
    assert result["costs"]["input_size"] == [32, 32]


@pytest.mark.slow
def test_a_network_of_the_front_is_exported_and_predicts(folder: Path) -> None:
    trial = read_front(folder / FOLDER).trials[-1]
    network = f"{FOLDER}/{files.NETWORKS_FOLDER}/trial_{trial.number}"
    forked(folder, "stage=export", f"weights={network}", "name=mine", "runs=runs", "num_threads=1")
    exported = folder / "runs/export/shapes_cls/mine"
    assert (exported / files.MODEL).is_file()
    assert yaml.safe_load((exported / files.ARCH).read_text()) == dict(trial.arch)
    images = next((folder / "data").glob("*/val/*"), None) or next(folder.glob("**/val/*"))
    forked(folder, "stage=predict", f"weights={network}", f"images={images}", "name=mine", "runs=runs")
    assert (folder / "runs/predict/shapes_cls/mine/predictions.csv").is_file()


@pytest.mark.slow
def test_a_subnet_is_trained_on_from_its_repaired_start_and_resumes(folder: Path) -> None:
    train = [*SETTINGS, "stage=pretrain", f"weights={WHOLE}", "arch=min", "task.recipe.lr=0.0001"]
    forked(folder, *train, "name=short", "trainer.max_steps=1", "checkpoint_every_n_steps=1")
    done = forked(folder, *train, "name=long", "trainer.max_steps=4", "checkpoint_every_n_steps=2")
    assert "is cut out of" in done.stdout + done.stderr
    long = folder / "runs/pretrain/shapes_cls/long"
    weights = torch.load(long / files.WEIGHTS)["body"]
    for name in (files.RESULT, files.WEIGHTS):
        (long / name).unlink()
    forked(folder, *train, "name=long", "trainer.max_steps=4", "checkpoint_every_n_steps=2")
    again = torch.load(long / files.WEIGHTS)["body"]
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


@pytest.mark.slow
def test_route_c_starts_from_repaired_subnets(
    folder: Path,
) -> None:
    proxy = [*SETTINGS, *SEARCH, "stage=proxy", "proxy.rungs=[0,2]", "proxy.keep=0.5", "name=proxy"]
    done = forked(folder, *proxy)
    assert "warm-up" not in done.stdout + done.stderr
    untrained = json.loads((folder / "runs/proxy/shapes_cls/proxy" / files.rung_file(1, 0)).read_text())
    in_search = json.loads((folder / FOLDER / files.trial_file(1)).read_text())
    assert untrained["arch"] == in_search["arch"]
    assert untrained["values"] == in_search["values"]
    last = json.loads((folder / "runs/proxy/shapes_cls/proxy" / files.trial_file(1)).read_text())
    assert last["images"] == 20


@pytest.mark.slow
def test_only_the_largest_network_of_the_task_is_searched(folder: Path) -> None:
    forked(folder, *SETTINGS, "stage=pretrain", "name=small", "arch=min", "trainer.max_steps=1")
    done = forked(folder, *SETTINGS, *SEARCH, "weights=runs/pretrain/shapes_cls/small", "name=other", code=2)
    assert "needs the weights of a supernet or of the largest network of this task" in sentence(done)


@pytest.mark.slow
def test_a_network_that_was_trained_on_the_search_split_is_searched_with_a_warning(folder: Path) -> None:
    forked(folder, *SETTINGS, "stage=pretrain", "name=all", "trainer.max_steps=1", "data.split.hold_out_search=false")
    done = forked(folder, *SETTINGS, *SEARCH, "weights=runs/pretrain/shapes_cls/all", "name=seen", "search.trials=2")
    assert "the network was trained on images of the search split" in done.stdout + done.stderr
    other = forked(folder, *SETTINGS, *SEARCH, "data.split.search_fraction=0.4", "name=shifted", "search.trials=2")
    assert "the network was trained on images of the search split" in other.stdout + other.stderr
    assert "images of the search split" not in (folder / FOLDER / files.LOG).read_text()
