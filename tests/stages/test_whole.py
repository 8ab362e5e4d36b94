"""From one trained network to a front of repaired ones: search, score, train on, export and predict."""

import io
import itertools
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import kendalltau

from nas_transfer.runs import files, read_front
from nas_transfer.stages.common.repair import remove_networks
from tests.conftest import REPOSITORY, load_supernet
from tests.test_cli import forked, sentence
from tests.test_cli import run as run_command

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
    assert not (folder / FOLDER / files.network_outcome(trial.number)).exists()  # it was repaired and scored once
    weights = torch.load(folder / network / files.WEIGHTS)
    assert weights["arch"] == dict(trial.arch)
    assert [Path(ancestor["file"]).parent.name for ancestor in weights["provenance"]] == ["whole"]


@pytest.mark.slow
def test_a_network_is_repaired_once_for_several_input_sizes(folder: Path) -> None:
    forked(folder, *SETTINGS, *SEARCH, "search.variants=1", "search.trials=7", "name=variants")
    run = folder / "runs/search/shapes_cls/variants"
    first, second = (json.loads((run / files.trial_file(number)).read_text()) for number in (3, 4))
    assert {name for name in first["arch"] if first["arch"][name] != second["arch"][name]} == {"resolution"}


def test_the_networks_of_the_front_and_of_running_trials_stay(tmp_path: Path) -> None:
    for number in range(4):
        files.network_folder(tmp_path, number).mkdir(parents=True)
    study = MagicMock(finished=lambda: {0, 1, 2}, front=lambda: [1])
    remove_networks(tmp_path, study)
    assert sorted(path.name for path in (tmp_path / files.NETWORKS_FOLDER).iterdir()) == ["trial_1", "trial_3"]


@pytest.mark.slow
def test_a_lost_network_is_repaired_again_to_the_same_score(folder: Path) -> None:
    shutil.copytree(folder / FOLDER, folder / "runs/search/shapes_cls/lost")
    run = folder / "runs/search/shapes_cls/lost"
    lost = read_front(run).trials[-1]
    network = files.network_folder(run, lost.number)
    before = (network / files.WEIGHTS).read_bytes()
    shutil.rmtree(network)
    forked(folder, *SETTINGS, *SEARCH, "search.trials=9", "name=lost")
    assert lost.number in {trial.number for trial in read_front(run).trials}
    outcome = json.loads((run / files.network_outcome(lost.number)).read_text())
    assert outcome["values"] == dict(lost.values)
    again, first = torch.load(network / files.WEIGHTS), torch.load(io.BytesIO(before))
    assert all(torch.equal(again["body"][name], tensor) for name, tensor in first["body"].items())


@pytest.mark.nightly
def test_workers_keep_the_networks_that_they_score(folder: Path) -> None:
    run = folder / "runs/search/shapes_cls/workers"
    run_command(folder, *SETTINGS, *SEARCH, "name=workers", "search.workers=2", "search.trials=5")
    front = read_front(run)
    kept = sorted(path.name for path in (run / files.NETWORKS_FOLDER).iterdir())
    assert kept == sorted(f"trial_{trial.number}" for trial in front.trials)  # and no outcome of a second evaluation
    for trial in front.trials:
        assert torch.load(files.network_folder(run, trial.number) / files.WEIGHTS)["arch"] == dict(trial.arch)
    assert "writing" not in (run / files.LOG).read_text()


@pytest.mark.slow
def test_the_whole_network_is_scored_at_another_resolution_as_it_is(folder: Path) -> None:
    weights = torch.load(folder / WHOLE / files.WEIGHTS)
    (folder / "small.yaml").write_text(yaml.safe_dump({**weights["arch"], "resolution": 32}))
    done = forked(folder, *SETTINGS, "stage=evaluate", "name=small", f"weights={WHOLE}", "arch=small.yaml")
    assert "is ignored" not in done.stdout + done.stderr
    result = json.loads((folder / "runs/evaluate/shapes_cls/small" / files.RESULT).read_text())
    assert result["arch"]["resolution"] == 32
    assert result["costs"]["input_size"] == [32, 32]


@pytest.mark.nightly
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


@pytest.mark.nightly
def test_a_part_of_a_trained_network_is_refused_without_images_for_its_repair(folder: Path) -> None:
    train = [*SETTINGS, "stage=pretrain", f"weights={WHOLE}", "arch=min", "trainer.max_steps=1", "name=bare"]
    done = forked(folder, *train, "repair_views=null", code=2)
    assert "is repaired, got repair_views=null: name a number" in sentence(done)


@pytest.mark.nightly
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


@pytest.mark.nightly
def test_a_network_that_was_trained_on_the_search_split_is_searched_with_a_warning(folder: Path) -> None:
    forked(folder, *SETTINGS, "stage=pretrain", "name=all", "trainer.max_steps=1", "data.split.hold_out_search=false")
    done = forked(folder, *SETTINGS, *SEARCH, "weights=runs/pretrain/shapes_cls/all", "name=seen", "search.trials=2")
    assert "the network was trained on images of the search split" in done.stdout + done.stderr
    other = forked(folder, *SETTINGS, *SEARCH, "data.split.search_fraction=0.4", "name=shifted", "search.trials=2")
    assert "the network was trained on images of the search split" in other.stdout + other.stderr
    assert "images of the search split" not in (folder / FOLDER / files.LOG).read_text()


@pytest.mark.slow
def test_subnets_are_scored_on_all_of_train(folder: Path) -> None:
    everything = ["data.split.search_fraction=1", "data.split.hold_out_search=null"]
    forked(folder, *SETTINGS, *SEARCH, *everything, "name=train", "search.trials=2")
    run = folder / "runs/search/shapes_cls/train"
    assert "scored on all of train, on which the network was trained" in (run / files.LOG).read_text()
    outcomes = [json.loads((run / files.trial_file(number)).read_text()) for number in (0, 1)]
    scores = np.asarray([outcome["values"]["score"] for outcome in outcomes])
    assert np.allclose(60 * scores, np.round(60 * scores), atol=1e-4)
    assert not np.allclose(18 * scores, np.round(18 * scores), atol=1e-4)  # as on the search split of 18 images


@pytest.mark.slow
def test_networks_that_are_trained_are_not_scored_on_all_of_train(folder: Path) -> None:
    everything = ["data.split.search_fraction=1", "data.split.hold_out_search=null"]
    done = forked(folder, *SETTINGS, *SEARCH, *everything, "stage=proxy", "proxy.rungs=[1]", "name=refused", code=2)
    assert "data.split.search_fraction=1 scores archs on the images that they were trained on" in sentence(done)


def test_a_supernet_is_not_trained_on_the_images_that_compare_its_archs(tmp_path: Path) -> None:
    train = ["stage=pretrain", "arch=supernet", "data.split.search_fraction=1", "data.split.hold_out_search=null"]
    done = forked(tmp_path, *SETTINGS, *train, "name=refused", "trainer.max_steps=1", code=2)
    assert "data.split.search_fraction=1 leaves no image on which a search could compare" in sentence(done)


DAMAGE = [
    "stage=search", f"weights={WHOLE}", "objective=[damage,macs]", "sampler=predicted_front", "search.ask_batch=12",
    "search.sampler.num_random=6", "name=damage", "search.trials=24",
]  # fmt: skip
FREE = ("resolution", "depth.mb5", "kernel_size.mb6", "expand_ratio.mb3")
"""The genes of the search of damage: 2 x 3 x 2 x 3 archs."""


@pytest.fixture(scope="module")
def damage_search(folder: Path) -> Path:
    """A search of damage and MACs alone over few archs."""
    space = load_supernet("bignas_nano").space
    largest = space.largest()
    frozen = ", ".join(f"{name}: {largest[name]}" for name in space.names if name not in FREE)
    forked(folder, *SETTINGS, *DAMAGE, f"search.frozen={{{frozen}}}")
    return folder / "runs/search/shapes_cls/damage"


@pytest.mark.nightly
def test_the_front_of_damage_and_macs_is_that_of_all_archs_and_evaluates_no_candidate(damage_search: Path) -> None:
    front = read_front(damage_search)
    table = json.loads((damage_search / files.DAMAGE).read_text())
    damages = {(choice["gene"], choice["value"]): choice["outputs"] for choice in table["choices"]}
    supernet = replace(load_supernet("bignas_nano"), resolutions=(32, 48))
    space, largest = supernet.space, supernet.space.largest()
    num_classes = front.trials[0].costs.num_classes
    choices = [gene.choices for gene in space.genes if gene.name in FREE]
    points = set()
    for values in itertools.product(*choices):
        arch = largest
        for name, value in zip((gene.name for gene in space.genes if gene.name in FREE), values, strict=True):
            arch = space.with_value(arch, name, value)
        total = sum(damages.get((name, arch[name]), 0.0) for name in FREE)
        size = (arch["resolution"], arch["resolution"])
        macs = supernet.body_cost(arch, size).macs + supernet.classifier_cost(arch, size, num_classes).macs
        points.add((round(total, 9), macs))
    best = {one for one in points if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in points)}
    assert {(round(trial.values["damage"], 9), trial.values["macs"]) for trial in front.trials} == best
    for trial in front.trials:  # the networks are scored once at the end
        assert (
            trial.metrics["top1"]
            == json.loads((damage_search / files.network_outcome(trial.number)).read_text())["metrics"]["top1"]
        )
        assert (files.network_folder(damage_search, trial.number) / files.WEIGHTS).is_file()
    for path in files.trial_files(damage_search):
        assert json.loads(path.read_text())["metrics"] == {}
    assert score_of(damage_search.parents[3], "runs/search/shapes_cls/damage") is not None


@pytest.mark.nightly
def test_a_continued_search_reads_the_damages_and_refuses_those_of_another_network(
    folder: Path, damage_search: Path
) -> None:
    path = damage_search / files.DAMAGE
    written = path.read_bytes(), path.stat().st_mtime_ns
    space = load_supernet("bignas_nano").space
    largest = space.largest()
    frozen = ", ".join(f"{name}: {largest[name]}" for name in space.names if name not in FREE)
    again = [*SETTINGS, *DAMAGE, f"search.frozen={{{frozen}}}", "search.trials=25"]
    done = forked(folder, *again)
    assert "measuring the damage" not in done.stdout + done.stderr
    assert (path.read_bytes(), path.stat().st_mtime_ns) == written
    table = json.loads(written[0])
    path.write_text(json.dumps({**table, "weights_sha256": "0" * 64}))
    done = forked(folder, *again, "search.trials=26", code=2)
    assert "was measured with weights 000000000000, got" in sentence(done)
    path.write_bytes(written[0])


@pytest.mark.slow
def test_a_supernet_has_no_damages(folder: Path) -> None:
    forked(folder, *SETTINGS, "stage=pretrain", "name=shared", "arch=supernet", "trainer.max_steps=1")
    done = forked(folder, *SETTINGS, *DAMAGE, "weights=runs/pretrain/shapes_cls/shared", "name=none", code=2)
    assert "objective=damage needs the weights of one whole network, got those of a supernet" in sentence(done)


def genes_of(arch: dict[str, Any]) -> dict[str, int]:
    """The value of each gene in the dict form of an arch."""
    names = load_supernet("bignas_nano").space.names
    groups = [name.partition(".")[0] for name in names]
    return {
        name: arch[group][groups[:index].count(group)] if "." in name else arch[group]
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    }


Script = Callable[..., list[str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run a script in a folder; the lines that it prints."""

    def run(folder: Path, name: str, *arguments: str) -> list[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(REPOSITORY / "scripts" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.slow
def test_route_d_is_the_whole_network_at_each_size(folder: Path, script: Script) -> None:
    paths = script(folder, "compare_routes.py", "sizes", WHOLE)
    archs = [yaml.safe_load((folder / path).read_text()) for path in paths]
    assert [arch.pop("resolution") for arch in archs] == [48, 32]
    largest = load_supernet("bignas_nano").space.largest().to_dict()
    del largest["resolution"]
    assert archs == [largest, largest]


@pytest.mark.nightly
def test_ranks_are_those_of_the_files(folder: Path, damage_search: Path, script: Script) -> None:
    run = "runs/proxy/shapes_cls/ranked"
    (folder / run).mkdir(parents=True)
    shutil.copy(damage_search / files.DAMAGE, folder / run)  # of the same network, views and seed
    forked(folder, *SETTINGS, *SEARCH, "stage=proxy", "sampler=predicted_front", "search.sampler.num_random=6",
           "search.sampler.damage=true", "proxy.rungs=[0,2]", "proxy.keep=1", "name=ranked")  # fmt: skip
    table = json.loads((folder / run / files.DAMAGE).read_text())
    damages = {(choice["gene"], choice["value"]): choice["outputs"] for choice in table["choices"]}
    rows = []
    for path in files.trial_files(folder / run):
        trained = json.loads(path.read_text())
        untrained = json.loads((folder / run / files.rung_file(trained["trial"], 0)).read_text())
        damage = sum(damages.get(choice, 0.0) for choice in genes_of(trained["arch"]).items())
        rows.append((trained["metrics"]["top1"], -damage, untrained["metrics"]["top1"]))
    cells = [line.split(" | ") for line in script(folder, "rank_repair.py", run, run) if line.startswith("| all |")]
    found = {row[1]: (float(row[2]), row[-1]) for row in cells if row[-1] == "8 |"}
    assert list(found) == ["damage", "damage of features", "untrained score", "MACs"]  # not the score of the last rung
    trained_scores, *estimates = zip(*rows, strict=True)
    for name, values in zip(("damage", "untrained score"), estimates, strict=True):
        tau = kendalltau(trained_scores, values).statistic
        assert found[name] == (pytest.approx(0.0 if np.isnan(tau) else tau, abs=0.006), "8 |")
    means = {row[1]: row[2:] for row in cells[-4:]}
    for name, (tau, _) in found.items():
        assert means[name] == [f"{tau:.2f} {tau:.2f}", f"{tau:.2f}", f"{tau:.2f} to {tau:.2f} |"]
