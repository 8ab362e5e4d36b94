"""Run the network of a finished run on a folder of images."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.progress import track

from nas_transfer.data.coco_annotations import CocoFile, ImageEntry
from nas_transfer.data.drawing import overlay_side, with_legend
from nas_transfer.data.images import image_files, write_image
from nas_transfer.data.keypoint_annotations import read_boxes
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.samples import DetectedBox, ScoredBox
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.runs import files as run_files
from nas_transfer.runs.atomic import write_json
from nas_transfer.stages.common.build import set_threads
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import trained_config, with_trained_groups
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

Boxes = dict[int, list[DetectedBox]]


def run(cfg: DictConfig, folder: Path) -> None:
    """Predict, write and draw; there is no `result.json`, so that the same command predicts new images.

    Raises:
        ConfigError: there are no images, the run has no configuration, or no arch of a supernet is chosen.
        NasTransferError: the data or the weights cannot be used.
    """
    if trained_config(cfg.weights) is None:
        raise ConfigError(
            f"stage=predict needs a run folder with {run_files.CONFIG}, got weights="
            f"{'null' if cfg.weights is None else cfg.weights}: add weights=<a finished run's folder>"
        )
    config = read_config(with_trained_groups(cfg), PredictConfig)
    set_threads(config.num_threads)
    root, files = _find_images(Path(config.images), folder)
    task, data, _ = load_trained(config)
    if task.is_supernet:
        raise ConfigError("stage=predict needs one arch, got arch=supernet: use max, min, a name or a file")
    boxes = _find_boxes(config.boxes, task, data, root, files)
    for name in (run_files.OVERLAYS_FOLDER, run_files.LABELS_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for stale in folder.glob(f"{run_files.PREDICTIONS_PREFIX}*.*"):
        stale.unlink()
    start = time.monotonic()
    rows, broken = _predict_all(config, task, data, root, files, boxes, folder)
    seconds = time.monotonic() - start
    if len(broken) == len(files):
        raise DataError(f"none of the {len(files)} images of {root} can be read: {broken[0]}")
    for name, records in rows.items():
        _write_rows(folder / name, records)
    print(f"{len(files) - len(broken)} images of {root} in {seconds:.1f} s: {folder}")
    for name, records in rows.items():
        print(f"  {name}: {len(records)} rows")
    for sentence in broken:
        print(f"  left out: {sentence}")


def _find_images(path: Path, folder: Path) -> tuple[Path, list[str]]:
    """The folder, and the sorted paths of its images relative to it; those in run folders below it are left out."""
    whole, own = path.resolve(), folder.resolve()
    if own in (whole, *whole.parents):
        raise ConfigError(f"images must lie outside of the folder {folder}, where predictions are written, got {path}")
    if path.is_file():
        return path.parent, [path.name]
    names = [Path(file).relative_to(path).as_posix() for file in image_files(path, (run_files.RUN,))]
    if not names:
        raise ConfigError(f"images must name an image or a folder of images, got none in {path}")
    return path, names


def _find_boxes(
    boxes_file: str | None, task: Task, data: DownstreamData, root: Path, files: Sequence[str]
) -> Boxes | None:
    """Boxes of persons by image number. None without a boxes file."""
    if boxes_file is None:
        if task.takes_boxes:
            logger.info("each image is taken as one person, since no boxes are given")
        return None
    if not task.takes_boxes:
        raise ConfigError(
            f"boxes need a pose task, got boxes={boxes_file} for a {task.kind.name} task: remove boxes from the command"
        )
    images = tuple(ImageEntry(number, name, 0, 0) for number, name in enumerate(files, start=1))
    listed = CocoFile(root, (), images, (), 0)
    by_image: Boxes = defaultdict(list)
    for record in read_boxes(Path(boxes_file), listed, data.vocabulary.ids[0], data.sources.box_threshold, "boxes"):
        number = record["image_id"]
        if record.get("file_name", files[number - 1]) != files[number - 1]:
            raise DataError(
                f"image_id {number} in {boxes_file} must be {files[number - 1]}, got {record['file_name']}: "
                f"predict boxes with images={root}"
            )
        by_image[number].append(record)
    return by_image


def _predict_all(
    config: PredictConfig,
    task: Task,
    data: DownstreamData,
    root: Path,
    files: Sequence[str],
    boxes: Boxes | None,
    folder: Path,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The rows of each file, and a sentence for each image that cannot be read."""
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    stems = Counter(Path(name).with_suffix("") for name in files)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    broken = []
    shown = config.trainer.enable_progress_bar and sys.stdout.isatty()
    for number, name in track(list(enumerate(files, start=1)), "predicting", transient=True, disable=not shown):
        try:
            image = data.read(root / name)
        except DataError as error:
            broken.append(str(error))
            continue
        whole: list[ScoredBox] = [{"bbox": [0.0, 0.0, float(image.shape[2]), float(image.shape[1])], "score": 1.0}]
        persons = whole if boxes is None else boxes[number]
        if not persons:
            continue
        batch = task.on_device(data.prediction_batch(image, persons))
        with torch.inference_mode():
            prediction = task.predict_image(batch, number, data.vocabulary)
        for file, records in prediction.rows.items():
            rows[file] += [{"image_id": number, "file_name": name, **row} for row in records]
        target = Path(name) if stems[Path(name).with_suffix("")] > 1 else Path(name).with_suffix("")
        _write_pictures(prediction, image, config.score_threshold, folder, target)
    return rows, broken


def _write_pictures(prediction: Prediction, image: torch.Tensor, threshold: float, folder: Path, target: Path) -> None:
    overlay = folder / run_files.OVERLAYS_FOLDER / f"{target}.jpg"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    write_image(with_legend(prediction.draw(image, threshold, overlay_side(image))), overlay, quality=90)
    if prediction.label_ids is not None:
        labels = folder / run_files.LABELS_FOLDER / f"{target}.png"
        labels.parent.mkdir(parents=True, exist_ok=True)
        write_image(Image.fromarray(prediction.label_ids), labels)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
        return
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
