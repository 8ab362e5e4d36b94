"""Image files: reading one as an RGB tensor, and finding missing and broken ones."""

import hashlib
import io
import logging
import os
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from nas_transfer.errors import DataError, storage_error

logger = logging.getLogger(__name__)

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 30)
"""Pixels of the largest image that PIL decodes."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

ORIENTATION, TURNING = 0x0112, range(2, 9)
"""The EXIF tag, and its values that turn or mirror an image."""
HASH_BYTES = 16
RUNS_A_PROGRAM = "EPS"
"""The format that PIL decodes by starting another program."""

# What PIL raises for files that are no image, truncated, or damaged (PNG chunks: SyntaxError; TIFF: struct.error).
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path, *, follow_exif: bool) -> torch.Tensor:
    """Read an image file as RGB.

    Args:
        path: any format that PIL reads; grey, palette, CMYK and 16-bit images are converted, alpha is ignored.
        follow_exif: turn the image as its EXIF orientation says. False where annotations hold pixel positions: those of
            COCO refer to the stored pixels.

    Returns:
        uint8 (3, H, W).

    Raises:
        DataError: the file is missing, truncated or no image; the message names it.
    """
    with opened(path, "image") as image:
        turned = ImageOps.exif_transpose(image) if follow_exif else image
        pixels = np.array(_to_rgb(turned), dtype=np.uint8)  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def hash_of(image: torch.Tensor) -> bytes:
    """A hash of the size and the pixels of an image, uint8 (3, H, W)."""
    height, width = image.shape[1:]
    digest = hashlib.blake2b(f"{height}x{width}:".encode(), digest_size=HASH_BYTES)
    digest.update(image.contiguous().numpy())
    return digest.digest()


def pixel_hash(path: str | Path, *, follow_exif: bool) -> bytes:
    """The hash of an image file as `read_image` reads it; DataError for one that cannot be read."""
    return hash_of(read_image(path, follow_exif=follow_exif))


def header(path: str | Path) -> tuple[str, int, int]:
    """Format, width and height of an image file, without decoding it; `UNREADABLE` for none."""
    with _opened(path) as image:
        return str(image.format), image.width, image.height


class StoredSize(NamedTuple):
    """The size of an image as it is stored, and whether its EXIF orientation turns or mirrors it for viewers."""

    width: int
    height: int
    turned: bool


def sizes_of(paths: Sequence[str | Path]) -> list[StoredSize]:
    """The size of each image, without decoding it; 1x1 for a file that is no image."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # file systems answer in parallel
        return list(pool.map(_size_of, paths))


def _size_of(path: str | Path) -> StoredSize:
    try:
        with _opened(path) as image:
            return StoredSize(image.width, image.height, _is_turned(image))
    except UNREADABLE:
        return StoredSize(1, 1, False)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in TURNING
    except UNREADABLE:  # the tags are damaged, which says nothing of the pixels
        return False


def coarse_pixels(path: str | Path) -> bytes:
    """The pixels of a JPEG file at an eighth of its size: equal for equal pixels; `UNREADABLE` for a broken file."""
    with _opened(path) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        return image.mode.encode() + image.tobytes()


def write_image(image: Image.Image, path: Path, quality: int = 75) -> None:
    """Write an image in the format of its name. PIL alone leaves half a file on a full disk and raises nothing."""
    stream = io.BytesIO()
    image.save(stream, Image.registered_extensions()[path.suffix], quality=quality)
    path.write_bytes(stream.getvalue())


@contextmanager
def opened(path: str | Path, kind: str) -> Iterator[Image.Image]:
    """Open an image file; PIL decodes it within the block.

    Args:
        path: the file.
        kind: what messages call it, such as ``label image``.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it.
    """
    try:
        with _opened(path) as image:
            yield image
    except FileNotFoundError as err:
        raise DataError(f"no such {kind}: {path}: complete the dataset") from err
    except UNREADABLE as err:
        if (failure := storage_error(err)) is not None:
            raise failure from err
        raise DataError(
            f"{path} is a broken or truncated {kind} ({err}): "
            "replace it, or leave broken images out with data.skip_broken=true"
        ) from err


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a regular file: opening a pipe would wait for somebody to write into it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")
    with Image.open(path) as image:
        if image.format == RUNS_A_PROGRAM:
            raise ValueError(f"the format {RUNS_A_PROGRAM} is not read")
        yield image


def named_in(folder: Path, name: str) -> Path | None:
    """The path of a file that data name, relative to a folder or absolute; None if it lies outside of the folder."""
    if "\0" in name:
        return None
    if ".." not in name and not os.path.isabs(name):
        return folder / name
    whole = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(whole, name))
    return folder / name if path.startswith(os.path.join(whole, "")) else None


def files_below(folder: Path, skip_marked: Collection[str] = ()) -> list[str]:
    """All files in a folder and those below it, sorted; none if there is no such folder.

    Links are followed, and each folder is listed once.

    Args:
        skip_marked: a folder below that holds a file of any of these names is left out.
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = [os.fspath(folder)] if folder.is_dir() else [], list[str]()
    while waiting or links:
        path = waiting.pop() if waiting else links.pop(0)  # links last, so that files are found where they are
        identity = os.stat(path)
        if (identity.st_dev, identity.st_ino) in seen:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        with os.scandir(path) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        if len(seen) > 1 and any(entry.name in skip_marked for entry in entries):
            continue
        for entry in entries:
            if not _is_folder(entry):
                files.append(entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                waiting.append(entry.path)
    return sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def image_files(folder: Path, skip_marked: Collection[str] = ()) -> list[str]:
    """All image files in a folder and those below it, sorted; see `files_below`."""
    return [path for path in files_below(folder, skip_marked) if is_image_name(os.path.basename(path))]


def is_image_name(name: str) -> bool:
    """Whether the name of a file is that of a visible image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def usable_images(paths: Sequence[str | Path], *, skip_broken: bool) -> list[int]:
    """Positions of the images that can be used, for a check before training.

    With `skip_broken` every file is decoded (JPEGs at an eighth of their size) and missing or broken ones are left out,
    counted and logged. Without it only their existence is checked, by listing each folder once; `read_image` raises for
    a truncated file.

    Raises:
        DataError: without `skip_broken`, the first missing file by name; with it, when no image is left.
    """
    if not skip_broken:
        missing = first_missing(paths)
        if missing is not None:
            raise DataError(
                f"no such image: {paths[missing]}: complete the dataset, "
                "or leave missing images out with data.skip_broken=true"
            )
        return list(range(len(paths)))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # PIL decodes without the lock
        sound = list(pool.map(_decodes, paths))
    broken = [path for path, good in zip(paths, sound, strict=True) if not good]
    if broken and len(broken) == len(paths):
        raise DataError(f"all {len(paths)} images are broken or missing, the first is {broken[0]}: repair them")
    if broken:
        shown = ", ".join(str(path) for path in broken[:5])
        logger.warning("left out %d broken or missing of %d images, first: %s", len(broken), len(paths), shown)
    return [position for position, good in enumerate(sound) if good]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert("RGB") would clip it to white
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey >> 8 if grey.max(initial=0) > 255 else grey).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def first_missing(paths: Sequence[str | Path]) -> int | None:
    """The position of the first path without a file, None if all exist; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    for position, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            return position
    return None


def _decodes(path: str | Path) -> bool:
    try:
        with _opened(path) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except UNREADABLE as err:
        if (failure := storage_error(err)) is not None:
            raise failure from err
        return False
    return True
