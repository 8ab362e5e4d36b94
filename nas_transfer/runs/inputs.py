"""``inputs.json``: the content that a run has read, so that it is never continued with other content.

Weights, arch files and annotation files count by the hash of their bytes, images by their names and sizes. These names
and sizes are also listed in ``images/<part>.txt.gz``, a line for each image.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.errors import RunError
from nas_transfer.runs import files
from nas_transfer.runs.atomic import replacing
from nas_transfer.runs.reading import START_ANEW, is_present, read_record, write_record

INPUTS_FORMAT = 1
WEIGHTS = "weights"
"""The role of the weights that a run starts from."""
LEAST_FOR_THREADS = 1000
BEGUN = (files.LAST_CHECKPOINT, files.PREVIOUS_CHECKPOINT, files.STUDY, files.STUDY_DATABASE)
"""A run that has left any of these has recorded what it reads."""
HASHED = "sha256:"
GONE = "-"
"""Stands for the size of a missing file."""


@dataclass(frozen=True)
class InputFile:
    """A file that a run has read.

    Attributes:
        path: absolute path.
        sha256: hash of its content.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class ImageList:
    """The images of a part of a dataset.

    Attributes:
        count: number of files.
        sha256: hash of their names and sizes.
    """

    count: int
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """The content that a run has read.

    Attributes:
        files: by role, such as ``weights``, ``arch`` and ``train annotations``.
        images: by the part of the dataset.
    """

    files: Mapping[str, InputFile]
    images: Mapping[str, ImageList]


def read_inputs(folder: Path) -> Inputs | None:
    """Read ``inputs.json``, None if there is none; RunError if it cannot be used."""
    path = folder / files.INPUTS
    return read_record(path, Inputs, INPUTS_FORMAT, START_ANEW) if is_present(path, START_ANEW) else None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def input_file(path: Path, sha256: str | None = None) -> InputFile:
    """A file with the hash of its content, which is read unless it is given; OSError for a missing file."""
    return InputFile(str(path.resolve()), sha256 or file_sha256(path))


def list_images(paths: Sequence[str | Path], root: Path) -> str:
    """The sizes and names of files, a line for each; names below `root` are relative to it."""
    above = os.path.join(root, "")
    if len(paths) < LEAST_FOR_THREADS:
        sizes = [_size(path) for path in paths]
    else:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # file systems answer in parallel
            sizes = list(pool.map(_size, paths))
    names = (str(path).removeprefix(above) for path in paths)
    return "".join(f"{size} {name!a}\n" for size, name in zip(sizes, names, strict=True))


def _size(path: str | Path) -> str:
    try:
        return str(os.stat(path).st_size)
    except OSError:
        return GONE


def hold_inputs(folder: Path, now: Mapping[str, InputFile], images: Mapping[str, str], *, writes: bool = True) -> None:
    """Record the content that a run reads; or compare it with what was recorded when the run began.

    Args:
        folder: the run folder.
        now: the files by role. A recorded file that is not among them, since it is gone, is not compared.
        images: lists of `list_images` by the part of the dataset, with lines "sha256:<hash> <name>" for other files.
        writes: whether this process writes the record.

    Raises:
        RunError: something has changed; the message names it.
    """
    recorded = read_inputs(folder)
    if recorded is None:
        if writes:
            if (work := files.work_in(folder, BEGUN)) is not None:
                raise RunError(
                    f"{folder} must hold {files.INPUTS} beside {work}, got none, so that nobody knows what the run has "
                    f"read: {START_ANEW}"
                )
            for part, text in images.items():
                with replacing(folder / files.images_file(part)) as temporary:
                    temporary.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))
            inputs = Inputs(now, {part: _summed_up(text) for part, text in images.items()})
            write_record(folder / files.INPUTS, inputs, INPUTS_FORMAT)
        return
    for role, file in now.items():
        require_same_file(folder, role, file)
    for part in sorted(recorded.images.keys() | images.keys()):
        before, text = recorded.images.get(part), images.get(part, "")
        if before != _summed_up(text) and (before is not None or text):
            raise _changed(folder, f"the images of {part}: {_first_difference(folder, part, text)}")


def require_same_files(folder: Path) -> None:
    """Refuse a run whose recorded files have changed; those that are gone are not compared.

    Raises:
        RunError: a file has another content.
    """
    recorded = read_inputs(folder)
    for role, before in () if recorded is None else recorded.files.items():
        path = Path(before.path)
        if path.is_file():
            require_same_file(folder, role, input_file(path))


def require_same_file(folder: Path, role: str, file: InputFile) -> None:
    """Refuse a file that differs from the one that the run in a folder has read in this role, if it has recorded one.

    Raises:
        RunError: the file has another content.
    """
    recorded = read_inputs(folder)
    before = None if recorded is None else recorded.files.get(role)
    if before is not None and before.sha256 != file.sha256:
        hashes = f"SHA-256 {file.sha256[:12]} instead of {before.sha256[:12]}"
        raise _changed(folder, f"{file.path} ({role}) has other content: {hashes}")


def next_aside(folder: Path) -> Path:
    """The first of NAME.1, NAME.2 and so on that does not exist."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


def _summed_up(text: str) -> ImageList:
    return ImageList(text.count("\n"), hashlib.sha256(text.encode()).hexdigest())


def _changed(folder: Path, what: str) -> RunError:
    return RunError(
        f"what the run in {folder} has read has changed, {what}: put it back, or start anew with resume=never, which "
        f"keeps the run in {next_aside(folder)}"
    )


def _first_difference(folder: Path, part: str, text: str) -> str:
    try:
        listed = gzip.decompress((folder / files.images_file(part)).read_bytes()).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return f"{text.count(chr(10))} files with other names or sizes"
    before, after = _by_name(listed.splitlines()), _by_name(text.splitlines())
    differing = [name for name in {**before, **after} if before.get(name, GONE) != after.get(name, GONE)]
    if not differing:
        return "the same files in another order"
    name = differing[0]
    was, now = before.get(name, GONE), after.get(name, GONE)
    how = "is new" if was == GONE else "is gone" if now == GONE else f"has {now} bytes instead of {was}"
    if was.startswith(HASHED) and now.startswith(HASHED):
        how = "has other content"
    others = f", and {len(differing) - 1} other files differ" if len(differing) > 1 else ""
    return f"{name} {how}{others}"


def _by_name(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition(" ") for line in lines)
    return {name: size for size, _, name in pairs}
