"""The drawn pose set: articulated figures with 13 joints, written in COCO's keypoint layout."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nas_transfer.data.images import write_image
from nas_transfer.data.randomness import stable_seed
from nas_transfer.data.synthetic.drawing import add_clutter, draw_background, finish

KEYPOINT_NAMES = (
    "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
LIMBS = ((1, 3), (3, 5), (2, 4), (4, 6), (7, 9), (9, 11), (8, 10), (10, 12))  # left ones have odd indices
SKELETON = (*LIMBS, (1, 2), (7, 8), (1, 7), (2, 8))
HEAD_RADIUS = 0.075  # as a share of the height of the figure, like all lengths here
_OVERSAMPLING = 2
_MIN_DISTANCE = 0.6  # of two centres, in mean half heights of the figures: they overlap but seldom hide each other


@dataclass(frozen=True)
class Figure:
    """One drawn figure: joints (13, 2) as x, y in the pixel-index frame, its height in pixels, and its silhouette."""

    joints: np.ndarray
    height: float
    covered: np.ndarray


def pose_joints(rng: np.random.Generator) -> np.ndarray:
    """Joints (13, 2) of a figure of height 1 around (0, 0), y down, from the front: its left side is on the right."""
    joints = np.zeros((13, 2))
    shoulder, hip, top, bottom = 0.11, 0.07, -0.26, 0.03
    joints[0] = rng.uniform(-0.02, 0.02), top - 0.13
    for side, sign in ((1, 1.0), (2, -1.0)):  # left, right
        joints[side] = sign * shoulder, top
        joints[side + 6] = sign * hip, bottom
        upper, lower = rng.uniform(-0.4, 2.6), rng.uniform(-0.3, 2.0)  # from hanging down, outwards and up
        joints[side + 2] = joints[side] + 0.16 * np.array([sign * math.sin(upper), math.cos(upper)])
        bend = upper + lower
        joints[side + 4] = joints[side + 2] + 0.15 * np.array([sign * math.sin(bend), math.cos(bend)])
        thigh, shin = rng.uniform(-0.1, 0.8), rng.uniform(-0.8, 0.1)
        joints[side + 8] = joints[side + 6] + 0.21 * np.array([sign * math.sin(thigh), math.cos(thigh)])
        bend = thigh + shin
        joints[side + 10] = joints[side + 8] + 0.21 * np.array([sign * math.sin(bend), math.cos(bend)])
    tilt = rng.uniform(-0.35, 0.35)
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    return joints @ turn.T


def paint_figure(rng: np.random.Generator, canvas: np.ndarray, centre: np.ndarray, height: float) -> Figure:
    """Draw a figure onto the canvas (H, W, 3) in place: right limbs in one colour, left ones much darker or lighter."""
    joints = pose_joints(rng) * height + centre
    sides = canvas.shape[:2]
    around = canvas.mean((0, 1))
    colour = rng.uniform(0, 255, 3)
    colour = np.clip(
        around + (colour - around) / (np.linalg.norm(colour - around) + 1e-6) * rng.uniform(130, 190), 0, 255
    )
    left = colour * 0.4 if colour.mean() > 90 else colour + 0.6 * (255 - colour)
    skin = np.clip(colour * 0.3 + 0.7 * np.array([225, 185, 150]) + rng.normal(0, 15, 3), 0, 255)
    size = (sides[1] * _OVERSAMPLING, sides[0] * _OVERSAMPLING)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    silhouette = Image.new("L", size)
    thick = height * rng.uniform(0.05, 0.065)

    def stroke(points: list[np.ndarray], shade: np.ndarray, width: float) -> None:
        places = [tuple((point + 0.5) * _OVERSAMPLING) for point in points]
        radius = width * _OVERSAMPLING / 2
        for image, fill in ((picture, tuple(int(value) for value in shade)), (silhouette, 255)):
            painter = ImageDraw.Draw(image)
            painter.line(places, fill=fill, width=max(1, round(2 * radius)), joint="curve")
            for x, y in places:
                painter.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    for start, end in ((7, 9), (8, 10), (9, 11), (10, 12)):
        stroke([joints[start], joints[end]], left if start % 2 else colour, thick * (1.2 if start < 9 else 1.0))
    torso = [joints[k] for k in (1, 2, 8, 7, 1)]
    stroke(torso, colour, thick)
    places = [tuple((point + 0.5) * _OVERSAMPLING) for point in torso]
    ImageDraw.Draw(picture).polygon(places, fill=tuple(int(value) for value in colour))
    ImageDraw.Draw(silhouette).polygon(places, fill=255)
    stroke([(joints[1] + joints[2]) / 2, joints[0]], skin, thick * 0.9)
    for start, end in ((1, 3), (2, 4), (3, 5), (4, 6)):
        stroke([joints[start], joints[end]], left if start % 2 else colour, thick * 0.9)
    _paint_head(picture, silhouette, joints[0], HEAD_RADIUS * height, skin)
    canvas[:] = np.asarray(picture.resize((sides[1], sides[0]), Image.Resampling.BOX), dtype=np.float32)
    covered = np.asarray(silhouette.resize((sides[1], sides[0]), Image.Resampling.BOX)) > 127
    return Figure(joints, height, covered)


def _paint_head(
    picture: Image.Image, silhouette: Image.Image, centre: np.ndarray, radius: float, skin: np.ndarray
) -> None:
    x, y = (centre + 0.5) * _OVERSAMPLING
    r = radius * _OVERSAMPLING
    for image, fill in ((picture, tuple(int(value) for value in skin)), (silhouette, 255)):
        ImageDraw.Draw(image).ellipse([x - r, y - 1.15 * r, x + r, y + 1.15 * r], fill=fill)
    face = ImageDraw.Draw(picture)
    for eye in (-0.4, 0.4):
        face.ellipse([x + eye * r - 0.15 * r, y - 0.35 * r, x + eye * r + 0.15 * r, y - 0.05 * r], fill=(20, 20, 30))
    face.line([x - 0.35 * r, y + 0.5 * r, x + 0.35 * r, y + 0.5 * r], fill=(120, 30, 40), width=max(1, round(r / 6)))


def draw_figures(part: str, index: int, image_size: int, seed: int) -> tuple[np.ndarray, list[Figure]]:
    """One image uint8 (S, S, 3) with one or two figures of 50 to 95 % of its side; the later ones lie on top."""
    rng = np.random.default_rng(stable_seed(seed, "figure", part, index))
    canvas = draw_background(rng, image_size, image_size)
    add_clutter(rng, canvas, int(rng.integers(1, 5)))
    figures: list[Figure] = []
    centres: list[tuple[np.ndarray, float]] = []
    for _ in range(int(rng.integers(1, 3))):
        for _attempt in range(20):
            height = image_size * float(rng.uniform(0.5, 0.95))
            centre = rng.uniform(0.35 * height, image_size - 0.35 * height, 2)
            gaps = [np.linalg.norm(centre - other) / (0.5 * (height + tall) / 2) for other, tall in centres]
            if all(gap > _MIN_DISTANCE for gap in gaps):
                centres.append((centre, height))
                figures.append(paint_figure(rng, canvas, centre, height))
                break
    add_clutter(rng, canvas, int(rng.integers(0, 2)), thin=True)
    return finish(rng, canvas), figures


def annotate_figure(figure: Figure, hidden: np.ndarray) -> dict[str, object]:
    """COCO's keypoints, num_keypoints, bbox and area: v is 2, 1 behind another figure, or 0 outside of the image."""
    side = hidden.shape[0]
    keypoints: list[float] = []
    for x, y in figure.joints:
        inside = -0.5 <= x < side - 0.5 and -0.5 <= y < side - 0.5
        if not inside:
            keypoints += [0, 0, 0]
            continue
        keypoints += [round(float(x), 2), round(float(y), 2), 1 if hidden[round(y), round(x)] else 2]
    rows, columns = np.flatnonzero(figure.covered.any(1)), np.flatnonzero(figure.covered.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "keypoints": keypoints,
        "num_keypoints": sum(value > 0 for value in keypoints[2::3]),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(figure.covered.sum()),
        "iscrowd": 0,
        "category_id": 1,
    }


def write_keypoints_part(root: Path, part: str, count: int, image_size: int, seed: int) -> None:
    """Write <part>2017/*.jpg and annotations/person_keypoints_<part>2017.json."""
    (root / f"{part}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id in range(1, count + 1):
        pixels, figures = draw_figures(part, image_id - 1, image_size, seed)
        file_name = f"{image_id:012d}.jpg"
        write_image(Image.fromarray(pixels), root / f"{part}2017" / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "height": image_size, "width": image_size})
        for number, figure in enumerate(figures):
            hidden = np.zeros_like(figure.covered)
            for other in figures[number + 1 :]:
                hidden |= other.covered
            record = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(record | annotate_figure(figure, hidden))
    category = {
        "id": 1, "name": "figure", "supercategory": "figure", "keypoints": list(KEYPOINT_NAMES),
        "skeleton": [[start + 1, end + 1] for start, end in SKELETON],
    }  # fmt: skip
    content = {"info": {"description": "figures"}, "licenses": [], "images": images}
    content |= {"annotations": annotations, "categories": [category]}
    (root / "annotations" / f"person_keypoints_{part}2017.json").write_text(json.dumps(content))
