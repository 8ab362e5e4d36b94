"""Validate a dataset on disk: decode every image once, count what is in it, and name what is wrong with it.

Each layout gives an `Inventory` of each part, made from the annotations that training reads. `check_text` formats the
result for people.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from nas_transfer.data.images import hash_of
from nas_transfer.errors import DataError
from nas_transfer.runs import Finding, LabelSummary, PartSummary, PersonSummary

SMALL_BELOW, LARGE_FROM = 32**2, 96**2
"""Bounds of COCO's area classes, in pixels of the stored image."""
TINY_SIDE = 4
"""Shortest side of a box in pixels at the input size of the network: one cell of the finest feature map."""
FEW_IMAGES = 50
"""Images of a search split of which one is two points of a score in percent."""
LARGER_FRACTIONS = (0.2, 0.3)
"""Shares of train that are proposed for the search split."""
FOLDS = 5
"""Number of folds that is proposed where trials are trained."""
OUTSIDE_BY = 1
"""Pixels by which a box may leave its image, since annotation tools round."""

Factor = Callable[[int, int], float]


@dataclass(frozen=True)
class Contents:
    """The annotations of one image.

    Attributes:
        labels: indices into `Inventory.class_names`, int64 (N,): of each object, of each labelled keypoint, of the
            image, or of each class of a label map.
        boxes: x, y, width and height of the objects in pixels, as in the file, float64 (N, 4); None for other layouts.
        areas: areas of the objects in pixels, of their masks where these are read, float64 (N,).
        keypoints: number of labelled keypoints of each person, int64 (N,); None for other layouts.
        pixels: number of each class of a label map and, last, of ignored ones, int64 (C + 1,); None for other layouts.
    """

    labels: np.ndarray
    boxes: np.ndarray | None = None
    areas: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Inventory:
    """A part of a dataset, before anything is left out of it.

    Attributes:
        class_names: names of the classes, or of the keypoints.
        files: names of the images.
        look: reads the image at a position, uint8 (3, H, W), and its contents; DataError for a broken one.
        refused: a sentence for each annotation that training would refuse.
        search: positions of the search split; empty for val.
        form: what people call the form of the files.
    """

    class_names: Sequence[str]
    files: Sequence[str]
    look: Callable[[int], tuple[torch.Tensor, Contents]]
    refused: Sequence[str] = ()
    search: Collection[int] = ()
    form: str = ""


@dataclass(frozen=True)
class Seen:
    """Facts about an image: its size, a hash of its pixels and its contents; `broken` says why it has none."""

    file: str
    height: int = 0
    width: int = 0
    digest: bytes = b""
    contents: Contents = field(default_factory=lambda: Contents(np.zeros(0, dtype=np.int64)))
    broken: str = ""


def see_all(inventory: Inventory, threads: int) -> Iterator[Seen]:
    """Read every image of a part once, in its order; PIL decodes without Python's lock."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        yield from pool.map(partial(_see, inventory), range(len(inventory.files)))


def _see(inventory: Inventory, position: int) -> Seen:
    file = inventory.files[position]
    try:
        image, contents = inventory.look(position)
    except DataError as error:
        return Seen(file, broken=str(error))
    height, width = image.shape[1:]
    return Seen(file, height, width, hash_of(image), contents)


def summarise(inventory: Inventory, seen: Sequence[Seen]) -> PartSummary:
    """A part in numbers, ready for JSON: images, sizes, classes and, where the layout has them, objects and pixels."""
    read = [image for image in seen if not image.broken]
    summary: PartSummary = {"images": len(seen), "broken": len(seen) - len(read)}
    if inventory.search:
        summary["search_images"] = len(inventory.search)
    if not read:
        return summary
    summary["width"] = _spread([image.width for image in read])
    summary["height"] = _spread([image.height for image in read])
    summary["classes"] = _classes(inventory.class_names, read)
    if read[0].contents.boxes is not None:
        summary["objects"] = _objects(read)
    if read[0].contents.pixels is not None:
        pixels = np.sum([image.contents.pixels for image in read], axis=0)
        for label, name in enumerate(inventory.class_names):
            summary["classes"][name]["pixel_share"] = float(pixels[label] / pixels.sum())
        summary["ignored_share"] = float(pixels[-1] / pixels.sum())
    return summary


def _classes(names: Sequence[str], read: Sequence[Seen]) -> dict[str, LabelSummary]:
    images, times = Counter[int](), Counter[int]()
    for image in read:
        labels = image.contents.labels.tolist()
        times.update(labels)
        images.update(set(labels))
    return {name: {"images": images[label], "count": times[label]} for label, name in enumerate(names)}


def _objects(read: Sequence[Seen]) -> PersonSummary:
    counts = [len(_array(image.contents.boxes)) for image in read]
    areas = np.concatenate([_array(image.contents.areas) for image in read])
    summary: PersonSummary = {
        "count": sum(counts),
        "per_image": _spread(counts),
        "images_without": sum(count == 0 for count in counts),
        "small": int((areas < SMALL_BELOW).sum()),
        "medium": int(((areas >= SMALL_BELOW) & (areas < LARGE_FROM)).sum()),
        "large": int((areas >= LARGE_FROM).sum()),
    }
    if read[0].contents.keypoints is not None:
        summary["keypoints_per_person"] = _spread(np.concatenate([_array(image.contents.keypoints) for image in read]))
    return summary


def _array(values: np.ndarray | None) -> np.ndarray:
    assert values is not None  # a layout gives a field for every image or for none
    return values


def _spread(values: Sequence[int] | np.ndarray) -> list[float] | None:
    """Minimum, median and maximum; None without values."""
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))] if len(values) else None


def part_findings(part: str, inventory: Inventory, seen: Sequence[Seen], factor: Factor) -> list[Finding]:
    """The faults within a part.

    Args:
        factor: by which the network resizes an image of this height and width; tiny sides are tiny after it.
    """
    findings = [Finding("broken", part, image.file, image.broken) for image in seen if image.broken]
    findings += [Finding("refused", part, "", sentence) for sentence in inventory.refused]
    present = {int(number) for image in seen for number in image.contents.labels}
    for label, name in enumerate(inventory.class_names):
        if label not in present:
            findings.append(Finding("empty class", part, name, f"{name}: not once in {part}"))
    for image in seen:
        if image.contents.boxes is not None:
            findings += _box_findings(part, image, factor(image.height, image.width))
    for files in _same(seen).values():
        if len(files) > 1:
            findings.append(Finding("repeated", part, files[0], f"{', '.join(files)}: the same pixels"))
    return findings


def search_findings(inventory: Inventory) -> list[Finding]:
    """A search split that is too small for its scores to tell networks apart, with a larger one; none without one.

    Args:
        inventory: of train.
    """
    count, images = len(inventory.search), len(inventory.files)
    if not 0 < count < FEW_IMAGES:
        return []
    fraction = next((share for share in LARGER_FRACTIONS if share * images >= FEW_IMAGES), LARGER_FRACTIONS[-1])
    remedy = "annotate more images"
    if (larger := round(fraction * images)) > count:
        remedy = f"data.split.search_fraction={fraction} makes it {larger} images, of which one is {_points(larger)}"
    remedy += f"; stage=search of a whole network scores on all {images} with data.split.search_fraction=1"
    if images >= FOLDS:
        remedy += f"; stage=proxy scores on all {images} with search.folds={FOLDS}, in {FOLDS} times the time"
    text = f"{count} of {images} images, of which one is {_points(count)}: {remedy}"
    return [Finding("few", "search", "search split", text)]


def _points(images: int) -> str:
    return f"{100 / images:.1f} points of the score"


def _box_findings(part: str, image: Seen, scale: float) -> Iterator[Finding]:
    for x, y, width, height in _array(image.contents.boxes).tolist():
        box = f"{image.file}: box [{x:g}, {y:g}, {width:g}, {height:g}]"
        if min(width, height) * scale < TINY_SIDE:
            sides = f"{width * scale:.1f}x{height * scale:.1f}"
            yield Finding("tiny", part, image.file, f"{box} is {sides} pixels at the input size")
        if min(x, y) < -OUTSIDE_BY or x + width > image.width + OUTSIDE_BY or y + height > image.height + OUTSIDE_BY:
            yield Finding("outside", part, image.file, f"{box} leaves the image of {image.width}x{image.height}")


def leaks(seen: Mapping[str, Sequence[Seen]], search: Collection[int] = ()) -> list[Finding]:
    """Images of val or of the search split whose pixels are those of an image that is trained on, one finding each.

    Args:
        search: positions of the search split in train.
    """
    train, val = seen.get("train", ()), seen.get("val", ())
    in_search = [image for position, image in enumerate(train) if position in search]
    outside = [image for position, image in enumerate(train) if position not in search]
    return [*_leaks("search", in_search, "train", outside), *_leaks("val", val, "train", train)]


def _leaks(part: str, scored: Sequence[Seen], other: str, trained: Sequence[Seen]) -> list[Finding]:
    files = _same(trained)
    return [
        Finding("leak", part, image.file, f"{image.file} of {part} is {', '.join(files[image.digest])} of {other}")
        for image in scored
        if not image.broken and image.digest in files
    ]


def _same(seen: Sequence[Seen]) -> dict[bytes, list[str]]:
    files: dict[bytes, list[str]] = defaultdict(list)
    for image in seen:
        if not image.broken:
            files[image.digest].append(image.file)
    return files
