"""Training runs as a user starts them: to the end, interrupted, resumed, swept, on two ranks."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from nas_transfer.runs import read_analysis
from tests.conftest import sample_data
from tests.test_cli import Fork, forked, run, sentence

TINY = [
    "data.draw.num_train=40", "data.draw.num_val=4", "data.draw.image_size=64", "trainer.enable_progress_bar=false",
    "task.build.detector.min_size=64", "task.build.detector.max_size=80", "data.batch_size=4", "num_threads=1",
]  # fmt: skip
CLASSIFY = [
    "stage=pretrain", "task=shapes_cls", "data.draw.num_train=60", "data.draw.num_val=12", "data.draw.image_size=64",
    "data.batch_size=10", "trainer.enable_progress_bar=false", "num_threads=1", "calibration_images=20",
]  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def tensors(folder: Path, file: str = "weights.pt") -> dict[str, torch.Tensor]:
    content = torch.load(folder / file, weights_only=True)
    return {f"body.{k}": v for k, v in content["body"].items()} | {f"rest.{k}": v for k, v in content["rest"].items()}


def assert_equal_runs(left: Path, right: Path) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert result(left)["samples_digest"] == result(right)["samples_digest"] != ""
    assert result(left)["metrics"] == result(right)["metrics"]
    assert result(left)["training"] == result(right)["training"]


def kill_after_first_checkpoint(folder: Path, arguments: list[str], run_folder: Path) -> None:
    """Start a run and SIGKILL it once it has stored a training state."""
    process = Fork(folder, *arguments)
    last = run_folder / "checkpoints" / "last.ckpt"
    while not last.exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    process.kill()
    assert not (run_folder / "result.json").exists(), "the run was finished before it was killed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        [
            *TINY,
            "arch=min",
            "trainer.max_steps=20",
            "checkpoint_every_n_steps=4",
            "ema_decay=0.9",
            "scoring.every=0.4",  # after the steps that are saved
            "scoring.use_best=true",
            "scoring.patience=9",
        ],
        [
            *CLASSIFY,
            "arch=supernet",
            "trainer.max_steps=8",
            "task.build.dropout=0.3",
            "checkpoint_every_n_steps=2",
            "task.recipe.accumulate=2",
        ],
    ],
    ids=["detector that ends with its best averaged weights", "supernet with accumulated gradients"],
)
def test_a_killed_run_goes_on_to_the_same_weights_samples_and_scores(tmp_path: Path, arguments: list[str]) -> None:
    killed, whole = ([*arguments, "name=mine", f"runs={name}"] for name in ("killed", "whole"))
    stage_task = "pretrain/shapes_cls" if "stage=pretrain" in arguments else "finetune/shapes_det"
    forked(tmp_path, *whole)
    folders = [tmp_path / name / stage_task / "mine" for name in ("killed", "whole")]
    kill_after_first_checkpoint(tmp_path, killed, folders[0])
    assert "resuming from" in forked(tmp_path, *killed).stdout
    assert_equal_runs(*folders)
    assert "already finished" in forked(tmp_path, *killed).stdout


@pytest.mark.slow
def test_scoring_on_the_way_changes_no_weight_and_keeps_the_best(tmp_path: Path) -> None:
    common = [*TINY, "arch=min", "trainer.max_steps=8"]
    forked(tmp_path, *common, "scoring.every=null", "name=unscored")
    forked(tmp_path, *common, "scoring.every=0.2", "name=scored")
    unscored, scored = (tmp_path / "runs/finetune/shapes_det" / name for name in ("unscored", "scored"))
    ours, theirs = tensors(scored), tensors(unscored)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    training = result(scored)["training"]
    assert training["weights"] == "last"
    forked(tmp_path, *TINY, "stage=evaluate", f"weights={scored / 'best.pt'}", "name=best")
    assert result(tmp_path / "runs/evaluate/shapes_det/best")["score"] == training["best_score"]
    assert torch.load(scored / "best.pt", weights_only=True)["step"] == training["best_step"]


@pytest.mark.slow
def test_a_training_that_gets_no_better_ends_early(tmp_path: Path) -> None:
    arguments = [
        *TINY, "arch=min", "trainer.max_steps=40", "scoring.every=0.2", "scoring.patience=3",
        "task.recipe.lr=1e-20", "task.recipe.clip_norm=1e-20", "name=mine", "checkpoint_every_n_steps=2",
    ]  # fmt: skip
    done = forked(tmp_path, *arguments)
    folder = tmp_path / "runs/finetune/shapes_det/mine"
    found = result(folder)
    steps, best = found["training"]["steps"], found["training"]["best_step"]
    assert f"early stopping at step {steps} of 20: 3 scorings" in done.stdout
    assert steps == best + 3 * 2 < 20
    assert found["images_seen"] == 4 * steps
    # Killed after the training, during the last evaluation: the same command trains no further.
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    assert (folder / "checkpoints/last.ckpt").is_file()
    for name in ("result.json", "weights.pt"):
        (folder / name).unlink()
    forked(tmp_path, *arguments)
    assert_equal_runs(folder, whole)
    assert result(folder)["images_seen"] == found["images_seen"]


@pytest.mark.slow
def test_a_supernet_has_no_scores_that_could_decide(tmp_path: Path) -> None:
    done = forked(tmp_path, *TINY, "arch=supernet", "trainer.max_steps=2", "scoring.use_best=true", code=2)
    assert "scoring.use_best needs scores while training" in sentence(done)


@pytest.mark.slow
def test_a_multirun_makes_a_folder_and_a_result_for_each_arch(tmp_path: Path) -> None:
    forked(tmp_path, "-m", "stage=finetune", "task=shapes_det", "arch=min,max", "trainer.max_steps=2", *TINY)
    results = [result(path.parent) for path in sorted((tmp_path / "runs/finetune/shapes_det").glob("*/result.json"))]
    assert len(results) == 2
    assert results[0]["arch"] != results[1]["arch"]
    for found in results:
        assert found["score_key"] == "map"
        assert 0 <= found["score"] <= 1
        assert {"map_50", "mar_100"} <= set(found["metrics"])
        assert found["images_seen"] == 8


@pytest.mark.slow
def test_a_supernet_pretrained_finetuned_and_evaluated_hands_its_weights_on(tmp_path: Path) -> None:
    forked(tmp_path, *CLASSIFY, "arch=supernet", "trainer.max_steps=3", "name=pre")
    pretrained = tmp_path / "runs/pretrain/shapes_cls/pre"
    assert result(pretrained)["arch"] is None
    assert {"min/top1", "max/top1"} <= set(result(pretrained)["metrics"])
    tune = forked(
        tmp_path,
        *TINY,
        "arch=min",
        f"weights={pretrained}",
        "trainer.max_steps=1",
        "name=tuned",
        "ema_decay=0.5",
        "logger=[csv,tensorboard]",
    )
    assert "weights of the body from" in tune.stdout
    tuned = tmp_path / "runs/finetune/shapes_det/tuned"
    assert list((tuned / "tensorboard").rglob("events.out.tfevents.*"))
    evaluate = [*TINY, "stage=evaluate", f"weights={tuned}"]
    forked(tmp_path, *evaluate, "name=again")
    again = tmp_path / "runs/evaluate/shapes_det/again"
    assert result(again)["metrics"] == result(tuned)["metrics"]
    assert json.loads((again / "predictions.json").read_text()) == json.loads((tuned / "predictions.json").read_text())

    forked(tmp_path, "stage=evaluate", f"weights={tuned}", "num_threads=1", "name=by_weights")
    by_weights = tmp_path / "runs/evaluate/shapes_det/by_weights"
    assert result(by_weights)["metrics"] == result(tuned)["metrics"]
    differs = forked(tmp_path, "stage=evaluate", f"weights={tuned}", "data.batch_size=7", "name=differs", code=2)
    assert "data.batch_size=7 differs from the run in" in sentence(differs)

    other = sentence(forked(tmp_path, *TINY, "arch=max", f"weights={tuned}", "trainer.max_steps=1", code=2))
    assert "tensor '" in other
    space = sentence(forked(tmp_path, *TINY, "supernet=bignas", f"weights={tuned}", "trainer.max_steps=1", code=2))
    assert "bignas_nano" in space


@pytest.mark.nightly
@pytest.mark.ddp
def test_two_ranks_train_a_supernet_and_equal_one_rank_with_both_batches(tmp_path: Path) -> None:
    # One optimiser step on the same 20 images: two ranks of 10 with synchronised BatchNorm, or one of 20.
    common = [
        *CLASSIFY,
        "arch=supernet",
        "trainer.max_steps=1",
        "data.split.hold_out_search=false",
        "data.draw.num_train=20",
    ]
    common += ["task.recipe.optimizer=sgd", "task.recipe.lr=0.1", "task.recipe.clip_norm=null"]
    one = [*common, "data.batch_size=20", "name=one"]
    two = [*common, "trainer.devices=2", "trainer.strategy=ddp", "name=two"]
    forked(tmp_path, *one)
    run(tmp_path, *two)
    ours, theirs = (tensors(tmp_path / "runs/pretrain/shapes_cls" / name) for name in ("two", "one"))
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert result(tmp_path / "runs/pretrain/shapes_cls/two")["devices"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "unreadable"),
        (b"PK\x03\x04 cut off", "unreadable"),
        (b"cposix\nsystem\n(S'touch pwned'\ntR.", "other objects"),
    ],
    ids=["empty", "truncated", "pickle bomb"],
)
def test_weights_that_are_no_tensors_are_one_sentence_and_run_nothing(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    done = forked(tmp_path, *TINY, "stage=evaluate", "weights=weights.pt", code=2)
    assert expected in sentence(done)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.nightly
def test_real_boxes_are_trained_on_and_scored(tmp_path: Path) -> None:
    sizes = ["min_size=128", "max_size=160", "proposals_test=100", "detections=10"]
    small = [*(f"task.build.detector.{size}" for size in sizes), "num_threads=1"]
    forked(
        tmp_path, "stage=finetune", "task=coco_det", f"data.root={sample_data('bccd')}", "arch=min", "name=mine",
        "trainer.max_steps=2", "trainer.enable_progress_bar=false", *small,
    )  # fmt: skip
    found = result(tmp_path / "runs/finetune/coco_det/mine")
    assert found["costs"]["num_classes"] == 3
    assert {"map", "map_50", "map_75"} <= set(found["metrics"])


@pytest.mark.nightly
def test_real_class_folders_are_trained_and_scored(tmp_path: Path) -> None:
    forked(
        tmp_path, "stage=pretrain", "task=imagenet", f"data.root={sample_data('flowers5')}", "arch=min",
        "trainer.max_steps=2", "data.batch_size=4", "trainer.limit_val_batches=5", "name=mine",
        "trainer.enable_progress_bar=false", "num_threads=1",
    )  # fmt: skip
    found = result(tmp_path / "runs/pretrain/imagenet/mine")
    assert found["costs"]["num_classes"] == 5
    assert 0 <= found["metrics"]["top1"] <= 1
    assert "top5" not in found["metrics"]  # of five classes it would always be 1
    analysis = read_analysis(tmp_path / "runs/pretrain/imagenet/mine")
    assert analysis is not None
    assert analysis.confusion is not None
    assert analysis.images == sum(map(sum, analysis.confusion.counts)) == 20
    right = sum(row[place] for place, row in enumerate(analysis.confusion.counts))
    assert right / 20 == pytest.approx(found["metrics"]["top1"])
    assert all((sample_data("flowers5") / one.file).is_file() for one in analysis.worst)
