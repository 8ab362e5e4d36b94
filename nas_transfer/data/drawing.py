"""Pictures of samples with their annotations, for people: boxes, masks, keypoints, label maps.

The functions `torchvision.utils.draw_*` do less: outlines of boxes reach a pixel too far to the right and down, a mask
replaces the one below it instead of mixing with it, and all keypoints of a person have one colour instead of one per
side of the body.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

TILE = 320
"""Side in pixels of the square that a picture is made to fit."""
LEAST_OVERLAY, MOST_OVERLAY = 640, 1280
"""Bounds of the longer side of a picture that stands alone."""
CAPTION = 16
GAP = 8
LEGEND_WIDTH, LEGEND_HEIGHT = 160, 20
GOLDEN = 0.618033988749895  # hues this far apart stay different, however many there are
MASK_OPACITY, BACKGROUND_OPACITY = 0.5, 0.12
BACKGROUND_NAMES = ("background", "void", "unlabelled", "unlabeled", "ignore")
"""Names of classes that stand for everything else: their tint would hide the image."""
GUESS_OPACITY = 0.5
LEFT, RIGHT, MIDDLE = (80, 180, 255), (255, 140, 40), (120, 230, 120)
"""Colours of keypoints by side."""

Colour = tuple[int, int, int]


@dataclass
class Picture:
    """A drawn sample.

    Attributes:
        image: RGB, the longer side `TILE` or as asked for.
        caption: one line below it.
        legend: what its colours mean.
        guessed: whether it shows best guesses, paler, since nothing reaches the threshold.
    """

    image: Image.Image
    caption: str
    legend: dict[str, Colour] = field(default_factory=dict)
    guessed: bool = False


def as_guess(picture: Picture, image: torch.Tensor, side: int = TILE) -> Picture:
    """What is drawn on an image, paler, for best guesses below the threshold."""
    plain, _ = fit(image, side)
    pale = Image.blend(plain, picture.image, GUESS_OPACITY)
    return replace(picture, image=pale, caption=f"best guesses: {picture.caption}", guessed=True)


def class_colour(label: int) -> Colour:
    """A colour for a class, clearly different from those of the classes before and after it."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.75 if label % 2 else 0.95, 0.95 if label % 3 else 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def fit(image: torch.Tensor, side: int = TILE) -> tuple[Image.Image, float]:
    """Resize an image, uint8 (3, H, W), to a longer side of `side` pixels; also returns the factor."""
    height, width = image.shape[1:]
    factor = side / max(height, width)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return picture.resize(_scaled((width, height), factor), _filter(factor)), factor


def overlay_side(image: torch.Tensor) -> int:
    """The longer side of a picture that stands alone: that of the image, within bounds that keep texts legible."""
    return min(max(*image.shape[1:], LEAST_OVERLAY), MOST_OVERLAY)


def draw_class(image: torch.Tensor, name: str) -> Picture:
    """An image with its class in the caption."""
    return Picture(fit(image)[0], name)


def draw_texts(image: torch.Tensor, texts: Sequence[str], side: int = TILE) -> Picture:
    """An image with lines of text in its corner."""
    picture, _ = fit(image, side)
    painter = ImageDraw.Draw(picture)
    for number, text in enumerate(texts):
        _text(painter, (4, 4 + 14 * number), text)
    return Picture(picture, "")


def draw_instances(
    image: torch.Tensor,
    boxes: torch.Tensor,
    labels: Sequence[int],
    names: Sequence[str],
    masks: torch.Tensor | None = None,
    scores: Sequence[float] | None = None,
    side: int = TILE,
) -> Picture:
    """An image with boxes (N, 4) xyxy in its pixels, each with its class, over masks uint8 (N, H, W).

    Args:
        labels: labels of the N objects, indices into `names`.
        scores: scores of the N objects, written beside their classes.
        side: longer side of the picture in pixels.
    """
    picture, factor = fit(image, side)
    texts = [names[label] for label in labels]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores, strict=True)]
    if masks is not None:
        for mask, label in zip(masks, labels, strict=True):
            picture = _tint(picture, mask.numpy() > 0, class_colour(label), factor)
    painter = ImageDraw.Draw(picture)
    for box, label, text in zip(boxes.tolist(), labels, texts, strict=True):
        left, top, right, bottom = (factor * value for value in box)
        colour = class_colour(label)
        painter.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=colour, width=2)
        _text(painter, (left + 3, top + 2), text)
    return Picture(picture, f"{len(labels)} object{'s' * (len(labels) != 1)}")


def draw_keypoints(
    image: torch.Tensor,
    keypoints: torch.Tensor,
    visible: Sequence[bool],
    edges: Iterable[tuple[int, int]],
    flip_pairs: Iterable[tuple[int, int]],
) -> Picture:
    """An image with its visible keypoints (K, 2), x and y in its pixel-index frame, coloured by side of the body."""
    picture, factor = fit(image)
    _draw_body(ImageDraw.Draw(picture), factor, keypoints, visible, edges, flip_pairs)
    legend = {"left": LEFT, "right": RIGHT, "neither": MIDDLE}
    return Picture(picture, f"{sum(visible)} of {len(visible)} keypoints", legend)


def draw_persons(
    image: torch.Tensor,
    persons: Sequence[torch.Tensor],
    visible: Sequence[Sequence[bool]],
    edges: Sequence[tuple[int, int]],
    flip_pairs: Sequence[tuple[int, int]],
    side: int = TILE,
) -> Picture:
    """The same as `draw_keypoints` for several persons.

    Of persons without a visible keypoint, all keypoints are drawn, paler.
    """
    picture, factor = fit(image, side)
    guessed = [keypoints for keypoints, seen in zip(persons, visible, strict=True) if not any(seen)]
    if guessed:
        plain = picture.copy()
        for keypoints in guessed:
            _draw_body(ImageDraw.Draw(picture), factor, keypoints, [True] * len(keypoints), edges, flip_pairs)
        picture = Image.blend(plain, picture, GUESS_OPACITY)
    for keypoints, seen in zip(persons, visible, strict=True):
        _draw_body(ImageDraw.Draw(picture), factor, keypoints, seen, edges, flip_pairs)
    return Picture(picture, f"{len(persons)} person{'s' * (len(persons) != 1)}", guessed=bool(guessed))


def _draw_body(
    painter: ImageDraw.ImageDraw,
    factor: float,
    keypoints: torch.Tensor,
    visible: Sequence[bool],
    edges: Iterable[tuple[int, int]],
    flip_pairs: Iterable[tuple[int, int]],
) -> None:
    points = [tuple(((value + 0.5) * factor - 0.5) for value in point) for point in keypoints.tolist()]
    colours = [MIDDLE] * len(points)
    for left, right in flip_pairs:
        colours[left], colours[right] = LEFT, RIGHT
    for start, end in edges:
        if visible[start] and visible[end]:
            colour = colours[start] if colours[start] == colours[end] else MIDDLE
            painter.line([points[start], points[end]], fill=colour, width=2)  # type: ignore[list-item]
    for (x, y), colour, seen in zip(points, colours, visible, strict=True):
        if seen:
            painter.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour, outline=(0, 0, 0))


def draw_label_map(image: torch.Tensor, labels: torch.Tensor, names: Sequence[str], side: int = TILE) -> Picture:
    """An image under its label map (H, W) of indices into `names`; other labels are ignored and not tinted.

    Classes of `BACKGROUND_NAMES` are tinted faintly.
    """
    picture, factor = fit(image, side)
    present = [int(label) for label in labels.unique() if label < len(names)]
    for label in present:
        opacity = BACKGROUND_OPACITY if names[label].strip("_ ").lower() in BACKGROUND_NAMES else MASK_OPACITY
        picture = _tint(picture, (labels == label).numpy(), class_colour(label), factor, opacity)
    share = float((labels >= len(names)).float().mean())
    legend = {names[label]: class_colour(label) for label in present}
    return Picture(picture, f"{len(present)} classes, {share:.0%} ignored", legend)


def contact_sheet(pictures: Sequence[Picture]) -> Image.Image:
    """All pictures in rows, each with its caption, above a legend of the colours."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    legend = {name: colour for picture in pictures for name, colour in picture.legend.items()}
    step = TILE + GAP
    tops = [GAP]
    for row in rows:
        tops.append(tops[-1] + max(picture.image.height for picture in row) + CAPTION + GAP)
    width = columns * step + GAP
    sheet = Image.new("RGB", (width, tops[-1] + _legend_height(legend, width)), (255, 255, 255))
    painter = ImageDraw.Draw(sheet)
    for row, top in zip(rows, tops, strict=False):
        for column, picture in enumerate(row):
            left = GAP + column * step
            sheet.paste(picture.image, (left, top))
            painter.text((left, top + picture.image.height + 2), picture.caption, fill=(0, 0, 0))
    _draw_legend(painter, legend, width, tops[-1])
    return sheet


def with_legend(picture: Picture) -> Image.Image:
    """A picture that stands alone, above its legend if it has one."""
    if not picture.legend:
        return picture.image
    width, height = picture.image.size
    sheet = Image.new("RGB", (width, height + GAP + _legend_height(picture.legend, width)), (255, 255, 255))
    sheet.paste(picture.image, (0, 0))
    _draw_legend(ImageDraw.Draw(sheet), picture.legend, width, height + GAP)
    return sheet


def _legend_columns(width: int) -> int:
    return max(1, (width - GAP) // LEGEND_WIDTH)


def _legend_height(legend: Mapping[str, Colour], width: int) -> int:
    return math.ceil(len(legend) / _legend_columns(width)) * LEGEND_HEIGHT


def _draw_legend(painter: ImageDraw.ImageDraw, legend: Mapping[str, Colour], width: int, top: int) -> None:
    columns = _legend_columns(width)
    for number, (name, colour) in enumerate(legend.items()):
        x, y = GAP + number % columns * LEGEND_WIDTH, top + number // columns * LEGEND_HEIGHT
        painter.rectangle([x, y, x + 12, y + 12], fill=colour)
        painter.text((x + 18, y), name, fill=(0, 0, 0))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _filter(factor: float) -> Image.Resampling:
    return Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX


def _tint(
    picture: Image.Image, mask: np.ndarray, colour: Colour, factor: float, opacity: float = MASK_OPACITY
) -> Image.Image:
    """Mix a colour into the picture where the mask (H, W), in pixels of the sample, is set."""
    alpha = Image.fromarray(mask.astype(np.uint8) * round(255 * opacity))
    fitted = alpha.resize(_scaled((mask.shape[1], mask.shape[0]), factor), _filter(factor))
    return Image.composite(Image.new("RGB", picture.size, colour), picture, fitted)


def _text(painter: ImageDraw.ImageDraw, corner: tuple[float, float], text: str) -> None:
    font = ImageFont.load_default()
    painter.rectangle(painter.textbbox(corner, text, font=font), fill=(0, 0, 0))
    painter.text(corner, text, fill=(255, 255, 255), font=font)
