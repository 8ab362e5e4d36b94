"""Run the network of a finished run on images, a video or a camera."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.progress import track

from nas_transfer.data.coco_annotations import CocoFile, ImageEntry
from nas_transfer.data.drawing import overlay_side, with_legend
from nas_transfer.data.images import write_image
from nas_transfer.data.keypoint_annotations import read_boxes
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.samples import DetectedBox, ScoredBox
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.runs import files as run_files
from nas_transfer.runs.atomic import write_json
from nas_transfer.stages.common.build import set_threads
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.common.image_inputs import Frames, ImageFiles, find_inputs
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import trained_config, with_trained_groups
from nas_transfer.tasks.prediction import Prediction, Row
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

Boxes = dict[int, list[DetectedBox]]


@dataclass
class Predicted:
    """What was predicted.

    Attributes:
        rows: the rows of each file.
        broken: a sentence for each image that cannot be read.
        num_images, num_pictures, num_label_images: numbers of images, and of pictures and label images written.
        num_empty: pictures of images with no row at all.
        num_guessed: pictures that show best guesses, since nothing reaches the threshold.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    broken: list[str] = field(default_factory=list)
    num_images: int = 0
    num_pictures: int = 0
    num_label_images: int = 0
    num_guessed: int = 0
    num_empty: int = 0


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
    inputs = find_inputs(config.images, folder, config.frame_step, config.max_frames)
    task, data, _ = load_trained(config)
    if task.is_supernet:
        raise ConfigError("stage=predict needs one arch, got arch=supernet: use max, min, a name or a file")
    boxes = _find_boxes(config.boxes, task, data, inputs)
    for name in (run_files.OVERLAYS_FOLDER, run_files.LABELS_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for stale in [*folder.glob(f"{run_files.PREDICTIONS_PREFIX}*.*"), *folder.glob(run_files.LABEL_NAMES)]:
        stale.unlink()
    start = time.monotonic()
    predicted = _predict_all(config, task, data, inputs, boxes, folder)
    seconds = time.monotonic() - start
    count, broken = predicted.num_images, predicted.broken
    if count == len(broken):
        raise DataError(f"none of the {count} images of {inputs.root} can be read: {broken[0]}")
    for name, records in predicted.rows.items():
        _write_rows(folder / name, records)
    if predicted.num_label_images:
        names = zip(data.vocabulary.ids, data.vocabulary.names, strict=True)
        _write_rows(folder / run_files.LABEL_NAMES, [{"id": number, "name": name} for number, name in names])
    print(f"{count - len(broken)} images of {inputs.root} in {seconds:.1f} s")
    print("\n".join(_lines(predicted, config.score_threshold, folder)))


def _lines(predicted: Predicted, threshold: float, folder: Path) -> list[str]:
    """Where the results lie, and what was left out."""
    lines = [f"  {folder / name}: {len(records)} rows" for name, records in predicted.rows.items()]
    if predicted.num_label_images:
        ids = f"ids of {folder / run_files.LABEL_NAMES}"
        lines.append(f"  {folder / run_files.LABELS_FOLDER}: {predicted.num_label_images} label images with {ids}")
    pale = f", {predicted.num_guessed} of them paler: best guesses below it" if predicted.num_guessed else ""
    pale += f", {predicted.num_empty} without any prediction" if predicted.num_empty else ""
    drawn = f"  {folder / run_files.OVERLAYS_FOLDER}: {predicted.num_pictures} pictures with scores from {threshold:g}"
    return [*lines, drawn + pale, *(f"  left out: {sentence}" for sentence in predicted.broken)]


def _find_boxes(boxes_file: str | None, task: Task, data: DownstreamData, inputs: ImageFiles | Frames) -> Boxes | None:
    """Boxes of persons by image number. None without a boxes file."""
    if boxes_file is None:
        if task.takes_boxes:
            logger.info("each image is taken as one person, since no boxes are given")
        return None
    if not task.takes_boxes:
        raise ConfigError(
            f"boxes need a pose task, got boxes={boxes_file} for a {task.kind.name} task: remove boxes from the command"
        )
    if isinstance(inputs, Frames):
        raise ConfigError(f"boxes need images in files, got {inputs.root}: write its frames as images first")
    root, files = inputs.root, inputs.names
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
    inputs: ImageFiles | Frames,
    boxes: Boxes | None,
    folder: Path,
) -> Predicted:
    """Predict and draw image by image; rows are written at the end."""
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    files = inputs.names if isinstance(inputs, ImageFiles) else ()
    stems = Counter(Path(name).with_suffix("") for name in files)
    names = {} if task.takes_boxes else dict(zip(data.vocabulary.ids, data.vocabulary.names, strict=True))
    keypoints = data.vocabulary.names if task.takes_boxes else ()
    predicted = Predicted()
    shown = config.trainer.enable_progress_bar and sys.stdout.isatty()
    images = track(inputs.read(data), "predicting", total=len(files) or None, transient=True, disable=not shown)
    for number, (name, read) in enumerate(images, start=1):
        predicted.num_images += 1
        try:
            image = read()
        except DataError as error:
            predicted.broken.append(str(error))
            continue
        whole: list[ScoredBox] = [{"bbox": [0.0, 0.0, float(image.shape[2]), float(image.shape[1])], "score": 1.0}]
        persons = whole if boxes is None else boxes[number]
        if not persons:
            continue
        batch = task.on_device(data.prediction_batch(image, persons))
        with torch.inference_mode():
            prediction = task.predict_image(batch, number, data.vocabulary)
        for file, records in prediction.rows.items():
            predicted.rows[file] += [
                {"image_id": number, "file_name": name, **_named(row, names, keypoints)} for row in records
            ]
        predicted.num_empty += bool(prediction.rows) and not any(prediction.rows.values())
        target = Path(name) if stems[Path(name).with_suffix("")] > 1 else Path(name).with_suffix("")
        _write_pictures(prediction, image, config.score_threshold, folder, target, predicted)
    return predicted


def _named(row: Row, names: Mapping[int, str], keypoints: Sequence[str]) -> Row:
    """A row in COCO's result format with the name of its category beside the id, or with those of its keypoints."""
    if "keypoints" in row:
        return {**row, "keypoint_names": list(keypoints)}
    category = row.get("category_id")
    return {**row, "category_name": names[category]} if isinstance(category, int) and category in names else row


def _write_pictures(
    prediction: Prediction, image: torch.Tensor, threshold: float, folder: Path, target: Path, predicted: Predicted
) -> None:
    overlay = folder / run_files.OVERLAYS_FOLDER / f"{target}.jpg"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    picture = prediction.draw(image, threshold, overlay_side(image))
    write_image(with_legend(picture), overlay, quality=90)
    predicted.num_pictures += 1
    predicted.num_guessed += picture.guessed
    if prediction.label_ids is not None:
        labels = folder / run_files.LABELS_FOLDER / f"{target}.png"
        labels.parent.mkdir(parents=True, exist_ok=True)
        write_image(Image.fromarray(prediction.label_ids), labels)
        predicted.num_label_images += 1


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
        return
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
