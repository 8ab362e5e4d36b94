"""Route C with `search.folds`: a network for each fold of train, and one score of the predictions of all folds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pycocotools.cocoeval import COCOeval

from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation
from nas_transfer.search.folds import FoldedEvaluator
from nas_transfer.stages import proxy
from nas_transfer.stages.config.entry import identity, read_config
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.supernet.layers import fold_batch_norms
from tests.stages.test_proxy import composed, parent, searched  # noqa: F401  parent is a fixture

FOLDS = 3


def evaluator_in(folder: Path, parent: Path, task: str, *overrides: str) -> FoldedEvaluator:  # noqa: F811
    (folder / "run").mkdir(exist_ok=True)
    cfg = composed(folder, parent, task, f"search.folds={FOLDS}", *overrides)
    evaluator = proxy.build_proxy_evaluator(read_config(cfg, ProxyConfig))
    assert isinstance(evaluator, FoldedEvaluator)
    return evaluator


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, parent: Path) -> tuple[Path, FoldedEvaluator, Evaluation]:  # noqa: F811
    """A folder, the evaluator of its search and a trial."""
    folder = tmp_path_factory.mktemp("folds")
    evaluator = evaluator_in(folder, parent, "shapes_cls")
    arch = evaluator.supernet.space.sample(np.random.default_rng(0), {"resolution": 48})
    return folder, evaluator, Evaluation(0, arch.to_dict(), "trials/0.json", steps=2)


@pytest.mark.slow
def test_a_score_is_the_share_of_correct_answers_of_all_folds(
    classifier: tuple[Path, FoldedEvaluator, Evaluation],
) -> None:
    _, evaluator, evaluation = classifier
    outcome = evaluator.evaluate(evaluation)
    correct, images = [], []
    for fold in evaluator.folds:
        subnet = fold.extract(evaluation)
        with torch.no_grad():
            for batch in fold.search:
                correct += (subnet.forward_batch(batch).argmax(1) == batch["labels"]).tolist()
                images += batch["sample_ids"].tolist()
    assert sorted(images) == list(range(60))
    assert outcome.metrics["top1"] == pytest.approx(sum(correct) / 60)
    assert outcome.values["score"] == outcome.metrics["top1"]
    assert outcome.images == FOLDS * 2 * 10


@pytest.mark.nightly
def test_boxes_of_all_folds_are_scored_together_as_pycocotools_scores_them(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    evaluator = evaluator_in(tmp_path, parent, "shapes_det")
    evaluation = Evaluation(0, evaluator.supernet.space.largest().to_dict(), "trials/0.json", steps=2)
    outcome = evaluator.evaluate(evaluation)
    results = []
    for fold in evaluator.folds:
        subnet = fold.extract(evaluation)
        with torch.no_grad():
            for batch in fold.search:
                for target, found in zip(batch["targets"], subnet.forward_batch(batch), strict=True):
                    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
                        x, y, right, bottom = box.double().tolist()
                        results.append({
                            "image_id": int(target["image_id"]), "category_id": subnet.category_ids[int(label) - 1],
                            "bbox": [x, y, right - x, bottom - y], "score": float(score),
                        })  # fmt: skip
    truth = evaluator.ground_truth
    assert truth is not None
    assert len(truth.getImgIds()) == 24  # all of train
    ours = COCOeval(truth, truth.loadRes(results), "bbox")
    ours.evaluate()
    ours.accumulate()
    ours.summarize()
    assert outcome.metrics["map"] == pytest.approx(ours.stats[0], abs=1e-12)
    assert outcome.metrics["mar_100"] == pytest.approx(ours.stats[8], abs=1e-12)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_between_folds_repeats_none_of_them(
    classifier: tuple[Path, FoldedEvaluator, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, evaluator, evaluation = classifier
    whole = evaluator.evaluate(evaluation)
    trained: list[int] = []

    def killed_after(count: int) -> None:
        for number, fold in enumerate(evaluator.folds):

            def train(subnet, evaluation, *, number=number, real=fold.train):
                if len(trained) == count:
                    raise KeyboardInterrupt
                trained.append(number)
                return real(subnet, evaluation)

            patch.setattr(fold, "train", train)

    for count in (1, 2):
        with monkeypatch.context() as patch:
            killed_after(count)
            with pytest.raises(KeyboardInterrupt):
                evaluator.evaluate(evaluation)
    with monkeypatch.context() as patch:
        killed_after(99)
        resumed = evaluator.evaluate(evaluation)
    assert trained == [0, 1, 2]
    assert (resumed.values, resumed.metrics) == (whole.values, whole.metrics)
    assert (resumed.images, resumed.training_macs) == (whole.images, whole.training_macs)
    assert resumed.seconds > resumed.training_seconds > 0
    assert not list((evaluator.folder / "states").glob("*"))
    file = evaluator.folder / "states" / "trials-0.folds.pt"
    file.write_bytes(b"damaged")
    assert evaluator.evaluate(evaluation).metrics == whole.metrics


@pytest.mark.slow
def test_the_network_that_is_timed_is_the_arch_before_any_training(
    classifier: tuple[Path, FoldedEvaluator, Evaluation],
) -> None:
    _, evaluator, evaluation = classifier
    expected = evaluator.supernet.extract(evaluator.supernet.space.from_dict(evaluation.arch)).eval()
    fold_batch_norms(expected.network)
    measured = evaluator.network(evaluation).network.state_dict()
    assert all(torch.equal(tensor, measured[name]) for name, tensor in expected.network.state_dict().items())


@pytest.mark.slow
@pytest.mark.nightly
def test_a_search_trains_each_trial_and_the_new_head_once_for_each_fold(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    halving = ["proxy.rungs=[0,2]", "search.trials=4", "search.ask_batch=4", "search.sampler.num_random=4"]
    result = searched(composed(tmp_path, parent, "shapes_det", f"search.folds={FOLDS}", *halving))
    assert (result["search"]["trials"], result["search"]["failed"]) == (4, 0)
    warmup, timed, steps, batch = 2, 2, 2, 4
    outcomes = [json.loads(path.read_text()) for path in (tmp_path / "run" / "trials").glob("*.json")]
    trained = [outcome for outcome in outcomes if outcome["images"]]
    assert len(trained) in (2, 3)  # half of them, and the baselines
    assert {outcome["images"] for outcome in trained} == {FOLDS * steps * batch}
    assert result["images_seen"] == FOLDS * batch * (warmup + timed * steps + len(trained) * steps)
    starts = [tmp_path / "run" / name for name in ("warm_start.pt", "warm_start.fold1.pt", "warm_start.fold2.pt")]
    heads = [torch.load(path, weights_only=True)["rest"] for path in starts]
    assert all(heads[0].keys() == other.keys() for other in heads[1:])
    assert not all(torch.equal(tensor, heads[1][name]) for name, tensor in heads[0].items())  # of other images
    times = [path.stat().st_mtime_ns for path in starts]
    assert searched(composed(tmp_path, parent, "shapes_det", f"search.folds={FOLDS}", *halving)) == result
    assert [path.stat().st_mtime_ns for path in starts] == times


@pytest.mark.slow
def test_all_folds_are_timed_for_a_budget_in_minutes(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    (tmp_path / "run").mkdir()
    cfg = composed(tmp_path, parent, "shapes_cls", f"search.folds={FOLDS}")
    timing = proxy.time_proxy(read_config(cfg, ProxyConfig))
    assert timing.images == 2 * FOLDS * 2 * 10  # the smallest and the largest arch
    assert min(timing.step_seconds) > 0
    assert list((tmp_path / "run").iterdir()) == []


def test_folds_are_refused_where_nothing_is_trained_or_the_weights_saw_the_images(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"search\.folds must be at least 2"):
        read_config(composed(tmp_path, parent, "shapes_cls", "search.folds=1"), ProxyConfig)
    scored = ["stage=search", "task=shapes_cls", f"data.root={tmp_path}/data", f"weights={parent}", "search.folds=5"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*scored, f"run_dir={tmp_path}/run", "name=mine"], return_hydra_config=True)
    with pytest.raises(ConfigError, match=r"is for stage=proxy.* a larger data\.split\.search_fraction, such as 0\.3"):
        read_config(cfg, SearchConfig)
    of_run = tmp_path / "trained"  # of these images
    (of_run / ".hydra").mkdir(parents=True)
    shutil.copy(parent / "weights.pt", of_run)
    own = composed(tmp_path, of_run, "shapes_cls", "search.folds=3")
    OmegaConf.save(OmegaConf.masked_copy(own, ["task", "supernet", "data", "seed"]), of_run / ".hydra" / "config.yaml")
    with pytest.raises(ConfigError, match=r"which the network in .* was trained on: remove search\.folds"):
        proxy.build_proxy_evaluator(read_config(own, ProxyConfig))


def test_a_search_without_folds_keeps_its_identity(tmp_path: Path, parent: Path) -> None:  # noqa: F811
    assert "search.folds" not in identity(composed(tmp_path, parent, "shapes_cls"))
    assert identity(composed(tmp_path, parent, "shapes_cls", "search.folds=3"))["search.folds"] == 3
