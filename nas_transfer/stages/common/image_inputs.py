"""What ``images=`` names: a file, a folder, a pattern, a video or a camera."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nas_transfer.data.frames import VIDEO_SUFFIXES, read_frames
from nas_transfer.data.images import image_files, is_image_name
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs import files as run_files

MOST_CAMERA_FRAMES = 100
"""Frames that are read of a camera without ``max_frames``."""
WANTED = "images must be an image, a folder of images, a pattern such as 'DIR/*.jpg', a video, or the index of a camera"

Read = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class ImageFiles:
    """Images in files.

    Attributes:
        root: the folder of the images.
        names: their sorted paths relative to it.
    """

    root: Path
    names: tuple[str, ...]

    def read(self, data: DownstreamData) -> Iterator[tuple[str, Read]]:
        """The name of each image, and a function that reads it as evaluation reads its own."""
        for name in self.names:
            yield name, lambda path=self.root / name: data.read(path)  # type: ignore[misc]


@dataclass(frozen=True)
class Frames:
    """The frames of a video or a camera.

    Attributes:
        source: the file of the video, or the index of the camera.
        step: 1 for all frames.
        most: number of frames; None for all.
    """

    source: Path | int
    step: int
    most: int | None

    @property
    def root(self) -> str:
        """What messages call it."""
        return f"camera {self.source}" if isinstance(self.source, int) else str(self.source)

    def read(self, data: DownstreamData) -> Iterator[tuple[str, Read]]:
        """The name of each frame, ``<video>/<number>.jpg``, and a function that gives its pixels."""
        folder = f"camera{self.source}" if isinstance(self.source, int) else self.source.stem
        for number, frame in read_frames(self.source, self.step, self.most):
            yield f"{folder}/{number:06d}.jpg", lambda frame=frame: data.fitted(frame)  # type: ignore[misc]


def find_inputs(images: str | int, folder: Path, step: int, most: int | None) -> ImageFiles | Frames:
    """Find what a value of ``images=`` names; images in run folders below it are left out.

    Args:
        images: the value; a number names a camera unless there is a file or a folder of that name.
        folder: the run folder, which must not be predicted on.
        step: of a video or a camera, every such frame is read.
        most: of a video or a camera, the number of frames; None for all of a video.

    Raises:
        ConfigError: nothing is found; the message says what was given.
    """
    if images == "":
        raise ConfigError(f"{WANTED}, got nothing")
    path = Path(str(images))
    if isinstance(images, int) and not path.exists():
        return Frames(images, step, MOST_CAMERA_FRAMES if most is None else most)
    whole, own = path.resolve(), folder.resolve()
    if own in (whole, *whole.parents):
        raise ConfigError(f"images must lie outside of the folder {folder}, where predictions are written, got {path}")
    if path.is_file():
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        return Frames(path, step, most) if is_video else ImageFiles(path.parent, (path.name,))
    if path.is_dir():
        names = [Path(file).relative_to(path).as_posix() for file in image_files(path, (run_files.RUN,))]
        if names:
            return ImageFiles(path, tuple(names))
        videos = [file.name for file in sorted(path.iterdir()) if file.suffix.lower() in VIDEO_SUFFIXES]
        hint = f", but videos: name one, such as images={path / videos[0]}" if videos else ""
        raise ConfigError(f"{WANTED}, got a folder without images, {path}{hint}")
    if glob.has_magic(str(path)):
        return _matching(str(path), own)
    raise ConfigError(f"{WANTED}, got {path}, which does not exist")


def _matching(pattern: str, own: Path) -> ImageFiles:
    """The images that a pattern matches, relative to the folder before its first sign."""
    root = Path(pattern)
    while glob.has_magic(str(root)):
        root = root.parent
    found = [Path(path) for path in glob.glob(pattern, recursive=True)]
    images = [path for path in found if is_image_name(path.name) and path.is_file()]
    names = [path.relative_to(root).as_posix() for path in images if own not in path.resolve().parents]
    if not names:
        raise ConfigError(f"{WANTED}, got {pattern}, which matches no image")
    return ImageFiles(root, tuple(sorted(names)))
