"""Exported files against the networks that they come from, and loaded as others load them, without this package."""

import json
import logging
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pycocotools.coco import COCO
from safetensors import safe_open

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.deploy.engines import (
    Run,
    largest_difference,
    run_onnx,
    run_torch,
    unmatched_detections,
    write_engines,
)
from nas_transfer.deploy.modules import DeployedBody, run_by
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.paths import conf_dir
from nas_transfer.stages import export
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.common.exported import check_score
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import EvaluateConfig
from nas_transfer.stages.evaluate import run as evaluate
from nas_transfer.stages.finetune import run as train
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.norms import LayerScale, ResponseNorm
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.coco_metrics import evaluate_coco
from nas_transfer.tasks.deployed import Deployed
from nas_transfer.tasks.normalise import Normalise
from tests.conftest import load_supernet, nightly_but
from tests.stages.test_proxy import BASE, TASKS

DETNAS_PUBLIC = "detnas_nano, as public supernets shuffle channels"
CONVNEXT_V2 = "convnext_micro, with global response normalisation"
FAMILIES = [
    DETNAS_PUBLIC,
    "convnext_micro",
    CONVNEXT_V2,
    "efficientnet_lite0",
    "bignas_nano",
    "detnas_nano",
    pytest.param("ofa_mbv3_w10", marks=pytest.mark.nightly),
    "mobilenet_v3_large",
    pytest.param("resnet50", marks=pytest.mark.nightly),
]


def body_of(table: SupernetTable) -> DeployedBody:
    """A random arch's body of the fewest blocks, with statistics as after training."""
    torch.manual_seed(0)
    shallow = {gene.name: gene.choices[0] for gene in table.space.genes if gene.name.startswith("depth.")}
    arch = table.space.sample(np.random.default_rng(1), shallow)
    body = DeployedBody(Normalise(table.preprocessing), build_body(table, arch)).eval()
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, LayerScale | ResponseNorm):
            module.weight.data.uniform_(0.5, 1.5)
    fold_batch_norms(body)
    return body


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_but(FAMILIES, "bignas_nano"))
def test_bodies_of_every_family_are_the_same_in_onnx_at_any_batch_and_size(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = load_supernet(name.partition(",")[0])
    if name == DETNAS_PUBLIC:
        table = replace(table, channel_shuffle_method=1)  # type: ignore[type-var]
    if name == CONVNEXT_V2:
        table = replace(table, response_norm=True, layer_scale=False)  # type: ignore[type-var]
    body = body_of(table)
    sizes = [(1, 3, 64, 96), (3, 3, 128, 32)]
    images = [255 * torch.rand(size) for size in sizes]
    with torch.inference_mode():
        before = [body(batch) for batch in images]
    write_engines(Deployed(body, body.outputs), tmp_path / "body.onnx")
    assert caplog.messages == []  # exporters would say dozens of things that no user can act on
    onnx = run_onnx(tmp_path / "body.onnx", 1)
    for batch, expected in zip(images, before, strict=True):
        for found, want in zip(onnx(batch), expected, strict=True):
            assert (found - want).abs().max() <= 1e-4 * want.abs().max()
    assert largest_difference(run_torch(body), onnx, images) < 1e-4


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides, *BASE])


def arguments_of(task: str, run: Path) -> list[str]:
    """A tiny dataset whose images have several sizes (detection), or sides that are no multiples of 32 (label maps)."""
    own = [value for value in TASKS[task] if not value.startswith("search.")]
    odd = ["data.draw.image_size=48"] if task == "shapes_seg" else []
    return [f"task={task}", f"data.root={run}/data", *own, *odd]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a task's tiny run, trained once."""

    @cache
    def folder(task: str) -> Path:
        run = tmp_path_factory.mktemp(task)
        result = train(cfg := composed(*arguments_of(task, run), "arch=min", "trainer.max_steps=3"), run)
        assert result is not None
        result.write(run)
        (run / ".hydra").mkdir()
        OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
        return run

    return folder


@pytest.fixture(scope="module")
def exported(trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the export of a task's tiny run, exported once."""

    @cache
    def folder(task: str) -> Path:
        written = tmp_path_factory.mktemp(f"{task}_exported")
        int8 = ["stage.int8=true", "stage.int8_images=8", "stage.max_int8_loss=1", "stage.latency_rounds=2"]
        cfg = composed("stage=export", f"weights={trained(task)}", *int8)  # all else is the run's
        export.run(cfg, written).write(written)
        return written

    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    ["shapes_det", *(
        pytest.param(task, marks=pytest.mark.nightly)
        for task in ("shapes_cls", "shapes_insseg", "shapes_pose", "shapes_seg")
    )],
)  # fmt: skip
def test_a_run_is_exported_scored_by_both_engines_and_loaded_without_this_package(
    trained: Callable[[str], Path], exported: Callable[[str], Path], task: str
) -> None:
    run, folder = trained(task), exported(task)
    result, own = (json.loads((path / "result.json").read_text()) for path in (folder, run))
    assert max(result["export"]["difference"].values()) < 1e-4
    assert result["costs"] == own["costs"]
    assert abs(result["score"] - result["export"]["score_torch"]) <= 0.005
    timed = result["export"]["files"]
    assert set(timed) == {path.name for path in folder.iterdir() if path.suffix in (".onnx", ".pt2")}
    assert all(one["latency_ms"] > 0 and len(one["size"]) == 2 for one in timed.values())
    assert timed["model.onnx"]["latency_ms"] == result["export"]["latency_ms"]["onnxruntime"]
    assert result["metrics"] == pytest.approx(own["metrics"], abs=0.005)
    for file in ("model.onnx", "model_int8.onnx"):
        about = onnxruntime.InferenceSession(str(folder / file)).get_modelmeta().custom_metadata_map
        assert len(json.loads(about["names"])) == own["costs"]["num_classes"]
        assert json.loads(about["input"])["range"] == [0, 255]
        assert json.loads(about["preprocessing"])["inside_the_network"]
        assert list(json.loads(about["outputs"])) == [
            output.name for output in onnxruntime.InferenceSession(str(folder / file)).get_outputs()
        ]
    int8 = result["export"]["int8"]
    assert int8["loss"] == pytest.approx(result["score"] - int8["score"])
    assert int8["layers"] > 0
    assert (folder / "model_int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    saved = torch.load(run / "weights.pt", weights_only=True)
    with safe_open(folder / "weights.safetensors", "pt") as tensors:
        kept = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  it is no mapping
        assert json.loads(tensors.metadata()["arch"]) == saved["arch"]
        assert json.loads(tensors.metadata()["table_fields"]) == saved["table_fields"]
    assert sum(t.numel() for t in kept.values()) == sum(t.numel() for t in (saved["body"] | saved["rest"]).values())
    examples_run((folder / "model_card.md").read_text(), folder, with_torch=task == "shapes_cls")


def examples_run(card: str, folder: Path, *, with_torch: bool) -> None:
    """The model card's examples run in an interpreter without nas_transfer, the first one also without torch.

    The first one draws named results, the second one prints what the card says.
    """
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 125, 3), dtype=np.uint8)).save(folder / "image.jpg")
    examples = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(examples) == 2
    printed = []
    for example, absent in zip(examples, (("nas_transfer", "torch", "onnx"), ("nas_transfer",)), strict=True):
        if "torch" not in absent and not with_torch:
            continue
        script = f"import sys; sys.modules |= dict.fromkeys({absent})\n" + example
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        printed.append(ran.stdout)
    about = onnxruntime.InferenceSession(str(folder / "model.onnx")).get_modelmeta().custom_metadata_map
    lines = [line.rsplit(" ", 2 if line.endswith("%") else 1)[0] for line in printed[0].splitlines()]
    assert lines
    assert set(lines) <= set(json.loads(about["names"]))
    with Image.open(folder / "drawn.png") as drawn, Image.open(folder / "image.jpg") as image:
        assert np.asarray(drawn).ndim == 3
        assert drawn.size != image.size or not np.array_equal(np.asarray(drawn), np.asarray(image))
    if with_torch:
        channels = [int(found) for found in re.findall(r"`stride_\d+` \((\d+) channels\)", card)]
        assert [int(line.split(", ")[1]) for line in printed[1].splitlines()] == channels


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", nightly_but(["shapes_cls", "shapes_det", "shapes_insseg", "shapes_pose", "shapes_seg"], "shapes_cls")
)
def test_one_network_has_one_score_at_the_end_of_training_in_an_evaluation_and_in_an_export(
    trained: Callable[[str], Path], exported: Callable[[str], Path], tmp_path: Path, task: str
) -> None:
    run = trained(task)
    own, export_result = (json.loads((path / "result.json").read_text()) for path in (run, exported(task)))
    again = evaluate(composed("stage=evaluate", *arguments_of(task, run), f"weights={run}"), tmp_path)
    assert again is not None
    assert again.metrics == pytest.approx(own["metrics"], abs=1e-6)
    assert export_result["export"]["score_torch"] == pytest.approx(own["score"], abs=1e-6)
    if task not in ("shapes_cls", "shapes_pose"):  # which pad nothing
        one_by_one = composed("stage=evaluate", *arguments_of(task, run), f"weights={run}", "data.batch_size=1")
        alone = evaluate(one_by_one, tmp_path / "alone")
        assert alone is not None
        assert alone.metrics == pytest.approx(own["metrics"], abs=1e-6)
    for file in run.glob("predictions*.json"):  # so short a training may score zero, but predicts something
        expected = json.loads((run / file.name).read_text())
        assert len(expected) > 0
        for folder in [tmp_path, *([] if task == "shapes_pose" else [tmp_path / "alone"])]:
            found = json.loads((folder / file.name).read_text())
            assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
            for key, tolerance in (("score", 1e-4), ("bbox", 1e-2), ("keypoints", 1e-2)):
                values = [np.ravel(row[key]) for row in expected if key in row]
                if values:
                    np.testing.assert_allclose([np.ravel(row[key]) for row in found], values, atol=tolerance)


@pytest.mark.nightly
def test_a_subnet_of_a_supernet_has_one_score_too(tmp_path: Path) -> None:
    arguments = [*arguments_of("shapes_cls", tmp_path), "calibration_images=16"]
    cfg = composed(*arguments, "arch=supernet", "trainer.max_steps=1")
    result = train(cfg, tmp_path)
    assert result is not None
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    again = evaluate(composed("stage=evaluate", *arguments, f"weights={tmp_path}", "arch=min"), tmp_path / "again")
    assert again is not None
    assert again.score == pytest.approx(result.metrics["min/top1"], abs=1e-6)
    exporting = composed("stage=export", f"weights={tmp_path}", "arch=min", "stage.latency_rounds=1")
    summary = export.run(exporting, tmp_path / "exported").export
    assert summary is not None
    assert summary.score_torch == pytest.approx(result.metrics["min/top1"], abs=1e-6)


def test_scores_may_differ_by_one_image_and_more_is_refused_with_a_remedy() -> None:
    stage = SimpleNamespace(max_score_difference=0.005)
    task, data = SimpleNamespace(score_key="map"), SimpleNamespace(num_val_images=40)

    def check(found: float) -> None:
        check_score(SimpleNamespace(stage=stage), task, data, "model.onnx", {"map": 0.5}, {"map": found})  # type: ignore[arg-type]

    check(0.5251 - 0.05)
    with pytest.raises(RunError, match=r"within 0\.0250 .*one of 40 images.*stage\.compared_images=40"):
        check(0.47)
    data.num_val_images = 5000
    with pytest.raises(RunError, match=r"within 0\.0050 "):
        check(0.494)


@pytest.mark.nightly
def test_integers_that_lose_too_much_leave_the_head_in_floats_or_are_refused(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["stage.int8=true", "stage.int8_images=4", "stage.latency_rounds=1", "stage.max_int8_loss=0.05"]
    cfg = composed("stage=export", f"weights={trained('shapes_cls')}", *options)
    scores = iter([-1.0, 1.0, -1.0, -1.0])  # with the head in integers and without, twice
    monkeypatch.setattr("nas_transfer.stages.common.exported.score_by", lambda *_: {"top1": next(scores)})
    summary = export.run(cfg, tmp_path / "kept").export
    assert summary is not None
    assert summary.int8 is not None
    assert summary.int8.score == 1
    assert summary.int8.float_layers > 0
    assert "the body alone in 8-bit integers" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"at most stage\.max_int8_loss=0\.05 lower .*nothing was exported; calibrate"):
        export.run(cfg, tmp_path / "refused")
    left = [path.name for path in (tmp_path / "refused").rglob("*") if path.is_file()]
    assert set(left) <= {"inputs.json"}


@pytest.mark.nightly
def test_the_exported_body_carries_a_torchvision_detector(tmp_path: Path) -> None:
    body = body_of(load_supernet("efficientnet_lite0"))
    write_engines(Deployed(body.requires_grad_(True), body.outputs), tmp_path / "body")

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.export.unflatten(torch.export.load(tmp_path / "body.pt2"))
            channels = [maps.shape[1] for maps in self.body(torch.zeros(1, 3, 64, 64))]
            self.neck = torchvision.ops.FeaturePyramidNetwork(channels, 16)
            self.out_channels = 16

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = self.body(images)
            return self.neck(OrderedDict((str(level), features) for level, features in enumerate(maps)))

    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    detector = torchvision.models.detection.FasterRCNN(
        Backbone(), 3, image_mean=[0.0] * 3, image_std=[1 / 255] * 3, min_size=64, max_size=96,
        rpn_anchor_generator=anchors,
    )  # fmt: skip
    image = torch.rand(3, 70, 90)
    losses = detector([image], [{"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone.body.parameters())
    assert set(detector.eval()([image])[0]) == {"boxes", "labels", "scores"}


@pytest.mark.slow
def test_a_network_that_differs_is_not_written(tmp_path: Path, trained: Callable[[str], Path]) -> None:
    cfg = composed("stage=export", f"weights={trained('shapes_pose')}", "stage.max_difference=1e-12")
    with pytest.raises(RunError, match="nothing was exported"):
        export.run(cfg, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_an_export_without_weights_is_one_sentence(tmp_path: Path) -> None:
    cfg = composed("stage=export", "task=shapes_cls", f"data.root={tmp_path}")
    with pytest.raises(ConfigError, match="add weights=<a finished run"):
        export.run(cfg, tmp_path)


def engine(*outputs: torch.Tensor) -> Run:
    return lambda images: outputs


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), 1.0]])
def test_outputs_that_are_no_numbers_are_never_equal(values: list[float]) -> None:
    sound, broken = engine(torch.ones(2)), engine(torch.tensor(values))
    for compare in (largest_difference, unmatched_detections):
        for pair in ((sound, broken), (broken, sound), (broken, broken)):
            with pytest.raises(RunError, match="engine must give finite outputs"):
                compare(*pair, [torch.zeros(1, 3, 8, 8)])
    with pytest.raises(ConfigError, match="compared_images above 0"):
        largest_difference(sound, sound, [])


def test_a_difference_from_zeros_is_whole_and_one_of_shape_an_error() -> None:
    image = [torch.zeros(1, 3, 8, 8)]
    assert largest_difference(engine(torch.zeros(3)), engine(torch.full((3,), 5.0)), image) == 1
    assert largest_difference(engine(torch.zeros(3)), engine(torch.zeros(3)), image) == 0
    assert largest_difference(engine(torch.tensor([1.0, -4])), engine(torch.tensor([1.0, -3])), image) == 0.25
    with pytest.raises(RunError, match=r"shape \(3,\), got \(4,\)"):
        largest_difference(engine(torch.zeros(3)), engine(torch.zeros(4)), image)


def test_detections_are_matched_in_any_order_and_those_of_one_engine_alone_are_counted() -> None:
    image = [torch.zeros(1, 3, 100, 200)]
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 90], [20, 20, 40, 40]])
    labels, scores = torch.tensor([1, 2, 1]), torch.tensor([0.9, 0.5, 0.5 - 1e-7])
    one, order = engine(boxes, labels, scores), torch.tensor([0, 2, 1])
    assert unmatched_detections(one, engine(boxes[order], labels[order], scores[order]), image) == (0, 6)
    assert unmatched_detections(one, engine(boxes + 0.19, labels, scores), image) == (0, 6)
    assert unmatched_detections(one, engine(boxes + 0.21, labels, scores), image) == (6, 6)
    assert unmatched_detections(one, engine(boxes, torch.tensor([1, 2, 2]), scores), image) == (2, 6)
    other_scores = scores + torch.tensor([0, 0.01, 0])
    assert unmatched_detections(one, engine(boxes, labels, other_scores), image) == (2, 6)
    assert unmatched_detections(one, engine(boxes[:2], labels[:2], scores[:2]), image) == (1, 5)
    empty = engine(boxes[:0], labels[:0], scores[:0])
    assert unmatched_detections(empty, empty, image) == (0, 0)


@pytest.mark.slow
def test_a_whole_detector_finds_in_onnx_what_it_finds_in_torch(
    trained: Callable[[str], Path], exported: Callable[[str], Path]
) -> None:
    """By COCO's measure, of a detector that scores near 1: what is annotated is what it says itself."""
    run = trained("shapes_det")
    cfg = OmegaConf.merge(OmegaConf.load(run / ".hydra/config.yaml"), {"weights": str(run)})
    assert isinstance(cfg, DictConfig)
    task, data, _ = load_trained(read_config(cfg, EvaluateConfig))
    fold_batch_norms(task.eval().network)
    engines = [run_torch(task.deployed().module.eval()), run_onnx(exported("shapes_det") / "model.onnx", 1)]
    found = [detections(task, data, engine) for engine in engines]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in sorted({row["image_id"] for row in found[0]})],
        "categories": [{"id": label, "name": str(label)} for label in task.category_ids],
        "annotations": [
            {**row, "id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
            for number, row in enumerate(found[0], start=1)
        ],
    }
    truth.createIndex()
    torch_map, onnx_map = (evaluate_coco(truth, rows, truth.getImgIds())["map"] for rows in found)
    assert torch_map > 0.9
    assert abs(torch_map - onnx_map) <= 0.005


def detections(task: Any, data: Any, run: Run) -> list[dict[str, Any]]:
    scored = run_by(task, run)
    with torch.inference_mode():
        for batch in data.val_dataloader():
            scored.update_metrics(batch)
    scored.compute_metrics()
    return scored.predictions["predictions"]
