"""Malformed datasets: a good one of any layout, in which one or two things are changed at random."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.attempts import BAD_INPUT, fault, run_command
from hostile.stages import Ground

TINY = [
    "data.root=data", "data.draw.num_train=8", "data.draw.num_val=4", "data.draw.image_size=64", "data.batch_size=4",
    "calibration_images=4", "num_threads=1", "trainer.enable_progress_bar=false", "trainer.max_steps=1", "arch=min",
    "data.split.search_fraction=0.3", "name=mine", "sample_predictions=1",
]  # fmt: skip
LAYOUTS: dict[str, list[str]] = {
    "shapes_insseg": ["task.build.detector.min_size=64", "task.build.detector.max_size=80"],
    "shapes_pose": [],
    "shapes_cls": ["data.image_size=48"],
    "shapes_seg": [],
}
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, -(2**63) - 1, 10**400, 1e308, math.nan, math.inf, -math.inf, "", "1", "\ud800",
    "../../x", "a\0b", "x" * 5000, [], [[]], [math.nan] * 6, [[1e9] * 6], {}, {"size": [64, 64], "counts": "0"},
    [10**30] * 4, {"size": [1, 1], "counts": [-1, 2]}, json.loads("[" * 900 + "]" * 900),
]  # fmt: skip
TEXTS = [
    b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 200_000, b"\0" * 4096,
    b'{"images": [], "annotations": [], "categories": []}',
]  # fmt: skip


def dataset(draw: random.Random, ground: Ground) -> tuple[str, str]:
    """Train one step on a malformed dataset, or check it."""
    task = draw.choice(list(LAYOUTS))
    folder = _good(task, ground)
    changes = [_change(task, folder / "data", draw) for _ in range(draw.choice([1, 1, 2]))]
    stage = draw.choice(["check", "train", "train"])
    first = f"stage={'check' if stage == 'check' else 'pretrain' if task == 'shapes_cls' else 'finetune'}"
    skip = ["data.skip_broken=true"] if draw.random() < 0.2 else []
    ended = run_command(folder, [first, f"task={task}", *TINY, *LAYOUTS[task], "data.draw=null", *skip])
    wrong = fault(ended, (0, BAD_INPUT))
    if not wrong and ended.code == 0 and stage == "train" and not skip and any("!" in change for change in changes):
        wrong = "silent success"
    return f"{task} {stage}{' skip_broken' * bool(skip)}: {'; '.join(changes)}", wrong


_drawn: dict[str, Path] = {}


def _good(task: str, ground: Ground) -> Path:
    """A fresh copy of a good dataset of a task."""
    if task not in _drawn:
        folder = ground.folder.with_name(f"data_{task}")
        folder.mkdir()
        ended = run_command(folder, ["stage=profile", f"task={task}", *TINY, *LAYOUTS[task], "preview=1"])
        if ended.code != 0:
            raise RuntimeError(ended.errors)
        shutil.rmtree(folder / "runs")
        _drawn[task] = folder
    shutil.rmtree(ground.work, ignore_errors=True)
    shutil.copytree(_drawn[task], ground.work)
    return ground.work


def _change(task: str, root: Path, draw: random.Random) -> str:
    annotations = sorted(root.glob("annotations/*.json"))
    if annotations and draw.random() < 0.75:
        path = draw.choice(annotations)
        try:
            return _change_json(path, draw)
        except (ValueError, LookupError, TypeError):  # an earlier change has left nothing to change
            return f"{path.name} as it is"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix in (".jpg", ".png"))
    path = draw.choice(files)
    how = draw.choice(list(FILES))
    FILES[how](path, draw)
    return f"{path.relative_to(root)} {how}"


def _change_json(path: Path, draw: random.Random) -> str:
    if draw.random() < 0.12:
        path.write_bytes(draw.choice(TEXTS))
        return f"{path.name} with other text"
    content = json.loads(path.read_text())
    where: list[str] = []
    holder: Any = content
    key: Any = draw.choice(["images", "annotations", "annotations", "annotations", "categories"])
    while True:
        where.append(str(key))
        value = holder[key]
        deeper = isinstance(value, dict | list) and len(value) and (len(where) < 2 or draw.random() < 0.75)
        if not deeper:
            break
        holder, key = value, draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = draw.random()
    if kind < 0.1:
        del holder[key]
        return _written(path, content, f"{'.'.join(where)} removed")
    if kind < 0.15 and isinstance(holder, list):
        holder.append(holder[key])
        return _written(path, content, f"{'.'.join(where)} doubled")
    value = draw.choice(VALUES)
    holder[key] = value
    broken = (
        isinstance(value, float) and not math.isfinite(value) and {"bbox", "segmentation", "keypoints"} & set(where)
    )
    # A segmentation is not read for keypoints, and a broken box is left out or replaced there.
    surely = "!" if broken and "person" not in path.name and "val" not in path.name else ""
    return _written(path, content, f"{'.'.join(where)} = {str(value)[:40]}{surely}")


def _written(path: Path, content: object, text: str) -> str:
    path.write_text(json.dumps(content))
    return f"{path.name} {text}"


def _pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


FILES: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": lambda path, draw: os.truncate(path, draw.randrange(path.stat().st_size)),
    "empty": lambda path, _: path.write_bytes(b""),
    "garbage": lambda path, draw: path.write_bytes(draw.randbytes(300)),
    "missing": lambda path, _: path.unlink(),
    "a pipe": _pipe,
    "a folder": _folder,
    "a link to itself": lambda path, _: _link(path, path.name),
    "a device": lambda path, _: _link(path, "/dev/zero"),
    "a link to a folder above, beside": lambda path, _: (path.parent / "loop").symlink_to(".."),
    "a page": lambda path, _: path.write_text("<html></html>"),
    "a huge image": lambda path, _: path.write_bytes(_png_header(100_000, 100_000)),
    "PostScript": lambda path, _: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
}


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
