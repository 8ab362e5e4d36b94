"""Shapes, textures, backgrounds and clutter of the drawn datasets, on float32 canvases (H, W, 3) in 0-255."""

import math

import numpy as np
from PIL import Image, ImageDraw

CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
_OVERSAMPLING = 4


MAX_TILT = 0.4  # radians


def random_shape(
    rng: np.random.Generator, name: str, size: float, centre: tuple[float, float], height: int, width: int
) -> np.ndarray:
    """Coverage of each pixel by a shape at a random rotation: float32 (H, W) in 0-1.

    Args:
        name: one of CLASS_NAMES.
        size: diameter of the circle around the shape, in pixels.
        centre: (y, x) in pixels; the shape may extend beyond the border.
    """
    outline, hole = _outline(rng, name)
    angle = float(rng.uniform(-MAX_TILT, MAX_TILT))
    squeeze = float(rng.uniform(0.85, 1.0))
    box = math.ceil(size) + 4
    top, left = math.floor(centre[0] - box / 2), math.floor(centre[1] - box / 2)
    tile = Image.new("L", (box * _OVERSAMPLING, box * _OVERSAMPLING))
    painter = ImageDraw.Draw(tile)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for points, value in ((outline, 255), (hole, 0)):
        if points is not None:
            moved = (points * [1.0, squeeze]) @ turn.T * (size / 2) + [centre[1] - left, centre[0] - top]
            painter.polygon([tuple(point) for point in (moved * _OVERSAMPLING).tolist()], fill=value)
    tile_alpha = np.asarray(tile.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    alpha = np.zeros((height, width), dtype=np.float32)
    rows = slice(max(top, 0), min(top + box, height))
    columns = slice(max(left, 0), min(left + box, width))
    alpha[rows, columns] = tile_alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return alpha


def paint_shape(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray) -> None:
    """Paint a shape with a random texture onto the canvas, in place; one in eight has little contrast."""
    around = canvas[alpha > 0.5].mean(axis=0) if (alpha > 0.5).any() else canvas.mean(axis=(0, 1))
    low_contrast = rng.random() < 1 / 8
    colour = around + rng.normal(0, 1, 3) if low_contrast else rng.uniform(0, 255, 3)
    difference = colour - around
    wanted = rng.uniform(35, 55) if low_contrast else max(120.0, float(np.linalg.norm(difference)))
    colour = np.clip(around + difference / (np.linalg.norm(difference) + 1e-6) * wanted, 0, 255)
    height, width = alpha.shape
    texture: np.ndarray = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    kind = rng.integers(4)
    strength = 10.0 if low_contrast else 25.0
    if kind == 1:
        texture = texture + strength * _ramp(rng, height, width)[..., None]
    elif kind == 2:
        texture = texture + strength * np.sign(np.sin(_ramp(rng, height, width) * rng.uniform(15, 40)))[..., None]
    elif kind == 3:
        texture = texture + rng.normal(0, strength / 2, (height, width, 1))
    blend = alpha[..., None]
    canvas[:] = canvas * (1 - blend) + texture * blend


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A gradient, clouds, stripes or patches in two or more colours: float32 (H, W, 3)."""
    first = rng.uniform(40, 215, 3)
    second = np.clip(first + rng.uniform(-60, 60, 3), 10, 245)  # weaker than the contrast of an object
    kind = rng.integers(4)
    if kind == 0:
        mix = (_ramp(rng, height, width) + 1) / 2
    elif kind == 1:
        mix = _clouds(rng, height, width, int(rng.integers(3, 9)))
    elif kind == 2:
        mix = 0.5 + 0.35 * np.sin(_ramp(rng, height, width) * rng.uniform(4, 25))
    else:
        cells = rng.random((int(rng.integers(2, 7)), int(rng.integers(2, 7)))).astype(np.float32)
        mix = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST))
    canvas = first + (second - first) * mix[..., None]
    canvas += 15 * (_clouds(rng, height, width, 5)[..., None] - 0.5)
    return canvas.astype(np.float32)


def add_clutter(rng: np.random.Generator, canvas: np.ndarray, count: int, *, thin: bool = False) -> None:
    """Draw lines, open arcs, letter-like strokes and small blobs, which belong to no class, on the canvas, in place."""
    if count == 0:
        return
    height, width, _ = canvas.shape
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    painter = ImageDraw.Draw(image)
    side = min(height, width)
    for _ in range(count):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        reach = float(rng.uniform(0.08, 0.22)) * side
        thickness = 1 if thin else int(rng.integers(1, 4))
        kind = 0 if thin else rng.integers(4)
        if kind == 0:
            ends = rng.uniform(-0.5, 0.5, 2) * side
            painter.line([x, y, x + float(ends[0]), y + float(ends[1])], fill=colour, width=thickness)
        elif kind == 1:
            start = float(rng.uniform(0, 360))
            painter.arc(
                [x, y, x + reach, y + reach], start, start + float(rng.uniform(60, 200)), fill=colour, width=thickness
            )
        elif kind == 2:
            steps = rng.uniform(-0.5, 0.5, (int(rng.integers(3, 6)), 2)) * reach + [x, y]
            painter.line([tuple(point) for point in steps.tolist()], fill=colour, width=thickness)
        else:
            points = rng.uniform(-0.25, 0.25, (5, 2)) * reach + [x, y]
            painter.polygon([tuple(point) for point in points.tolist()], fill=colour)
    canvas[:] = np.asarray(image)


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Add uneven light and sensor noise: uint8 (H, W, 3)."""
    height, width, _ = canvas.shape
    light = 1 + 0.2 * rng.uniform(0, 1) * _ramp(rng, height, width)[..., None]
    noise = rng.normal(0, rng.uniform(1, 7), canvas.shape)
    return np.clip(canvas * light + noise, 0, 255).astype(np.uint8)


def _outline(rng: np.random.Generator, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Corners (K, 2) of a shape inside the unit circle, and those of its hole."""
    if name == "circle":
        return _corners(40, 1.0), None
    if name == "ring":
        return _corners(40, 1.0), _corners(40, float(rng.uniform(0.45, 0.65)))
    if name == "square":
        return _corners(4, 1.0), None
    if name == "triangle":
        return _corners(3, 1.0), None
    if name == "star":
        points = _corners(10, 1.0)
        points[1::2] *= float(rng.uniform(0.38, 0.5))
        return points, None
    arm = float(rng.uniform(0.22, 0.34))  # cross: half the thickness of an arm
    end = math.sqrt(1 - arm**2)
    quarter = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]), None


def _corners(count: int, radius: float) -> np.ndarray:
    angles = np.arange(count) * (2 * math.pi / count)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A plane rising in a random direction: float32 (H, W), between -1 and 1."""
    angle = rng.uniform(0, 2 * math.pi)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    plane = math.sin(angle) * y + math.cos(angle) * x
    return (plane / np.abs(plane).max()).astype(np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise: float32 (H, W), about 0-1."""
    coarse = rng.random((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
