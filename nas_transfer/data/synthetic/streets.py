"""The drawn segmentation set: street scenes in the layout of Cityscapes, with its label ids.

Buildings, trees, cars and persons stand along a street in perspective; near objects hide far ones. The colours of
different classes overlap, so a network has to use texture, shape and position. Every image is a pure function of (seed,
part, index).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nas_transfer.data.images import write_image
from nas_transfer.data.randomness import stable_seed
from nas_transfer.data.synthetic.drawing import draw_background, finish, paint_shape

CLASS_NAMES = ("road", "sidewalk", "building", "vegetation", "sky", "person", "car")
CLASS_IDS = (7, 8, 11, 21, 23, 24, 26)
VOID_ID = 0

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, PERSON, CAR = CLASS_IDS
_OVERSAMPLING = 3

Point = tuple[float, float]  # x, y in pixels
Polygon = Sequence[Point]


@dataclass(frozen=True)
class StreetScene:
    """A drawn street: pixels uint8 (H, W, 3) and Cityscapes' label ids uint8 (H, W)."""

    pixels: np.ndarray
    ids: np.ndarray


def write_cityscapes_part(root: Path, part: str, count: int, image_size: int, seed: int) -> None:
    """Write `count` images, image_size x 2 image_size pixels (H x W), into leftImg8bit/<part> and gtFine/<part>."""
    cities = (f"{part}ford", f"{part}ville")
    for city in cities:
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / part / city).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = draw_street(part, index, image_size, 2 * image_size, seed)
        city = cities[index % 2]
        stem = f"{city}_000000_{index:06d}"
        write_image(Image.fromarray(scene.pixels), root / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png")
        write_image(Image.fromarray(scene.ids), root / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png")


def draw_street(part: str, index: int, height: int, width: int, seed: int) -> StreetScene:
    """One street scene."""
    rng = np.random.default_rng(stable_seed(seed, "street", part, index))
    view = _View(
        vanishing_x=width * float(rng.uniform(0.35, 0.65)),
        horizon=height * float(rng.uniform(0.34, 0.5)),
        kerb=float(rng.uniform(0.4, 0.75)),
        wall=float(rng.uniform(0.16, 0.26)),
    )
    painter = _Painter(rng, height, width)
    _draw_sky(painter)
    _draw_distance(painter, view)
    for side in (-1, 1):
        _draw_row(painter, view, side)
    _draw_ground(painter, view)
    _draw_things(painter, view)
    if rng.random() < 0.4:
        _draw_bonnet(painter)
    exposure = float(rng.uniform(0.65, 1.15))
    return StreetScene(finish(rng, painter.canvas * exposure), painter.ids)


@dataclass(frozen=True)
class _View:
    """The perspective of a street. Each line along it on the ground leaves the vanishing point with a fixed slope.

    Attributes:
        vanishing_x: column of the vanishing point, pixels.
        horizon: row of the horizon, pixels.
        kerb: slope (pixels down per pixel sideways) of the road's border.
        wall: slope of the line on which walls stand; smaller, since they are further away from the camera.
    """

    vanishing_x: float
    horizon: float
    kerb: float
    wall: float

    def stand(self, depth: float, slope: float, side: int) -> Point:
        """The point `depth` pixels below the horizon on the line of `slope`."""
        return self.vanishing_x + side * depth / slope, self.horizon + depth


class _Painter:
    """A canvas float32 (H, W, 3) with its ids uint8 (H, W), on which later objects cover earlier ones."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height = height
        self.width = width
        self.canvas = np.zeros((height, width, 3), dtype=np.float32)
        self.ids = np.full((height, width), VOID_ID, dtype=np.uint8)

    def cover(self, polygons: Sequence[Polygon], ellipses: Sequence[tuple[Point, float, float]] = ()) -> np.ndarray:
        """Coverage of each pixel by polygons and by ellipses (centre, half width, half height): float32 (H, W)."""
        tile = Image.new("L", (self.width * _OVERSAMPLING, self.height * _OVERSAMPLING))
        brush = ImageDraw.Draw(tile)
        for polygon in polygons:
            brush.polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in polygon], fill=255)
        for (x, y), half_width, half_height in ellipses:
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            brush.ellipse([value * _OVERSAMPLING for value in box], fill=255)
        return np.asarray(tile.reduce(_OVERSAMPLING), dtype=np.float32) / 255

    def fill(self, alpha: np.ndarray, colour: np.ndarray, label: int | None, roughness: float = 0.0) -> None:
        """Paint a colour, with a random pattern and grain of some roughness; None keeps the ids."""
        texture = np.broadcast_to(np.asarray(colour, dtype=np.float32), self.canvas.shape)
        if roughness:
            pattern = draw_background(self.rng, self.height, self.width).mean(axis=2, keepdims=True)
            grain = self.rng.normal(0, roughness, (self.height, self.width, 1))
            texture = texture + np.clip(pattern - pattern.mean(), -2 * roughness, 2 * roughness) + grain
        blend = alpha[..., None]
        self.canvas = (self.canvas * (1 - blend) + texture * blend).astype(np.float32)
        self.mark(alpha, label)

    def mark(self, alpha: np.ndarray, label: int | None) -> None:
        """Give the covered pixels an id; None keeps their ids."""
        if label is not None:
            self.ids[alpha >= 0.5] = label


def _draw_sky(painter: _Painter) -> None:
    """Blue, grey or evening sky: a gradient with clouds over the whole canvas."""
    rng = painter.rng
    above = [(70, 120, 200), (150, 155, 165), (90, 80, 130), (120, 170, 220)][int(rng.integers(4))]
    below = [(190, 215, 240), (215, 215, 215), (235, 170, 120), (170, 185, 190)][int(rng.integers(4))]
    mix = np.linspace(0, 1, painter.height, dtype=np.float32)[:, None, None] ** 0.7
    gradient = np.asarray(above, dtype=np.float32) * (1 - mix) + np.asarray(below, dtype=np.float32) * mix
    painter.canvas[:] = gradient + rng.normal(0, 8, 3)
    painter.ids[:] = SKY
    clouds = [
        (
            (float(rng.uniform(0, painter.width)), painter.height * float(rng.uniform(0, 0.4))),
            painter.width * float(rng.uniform(0.05, 0.2)),
            painter.height * float(rng.uniform(0.02, 0.07)),
        )
        for _ in range(int(rng.integers(0, 5)))
    ]
    painter.fill(0.6 * painter.cover([], clouds), rng.uniform(190, 245) + rng.normal(0, 4, 3), None)


def _draw_distance(painter: _Painter, view: _View) -> None:
    """Houses and bushes at the end of the street, on the horizon."""
    rng, side = painter.rng, painter.height
    reach = painter.width * 0.3
    left = view.vanishing_x - reach
    while left < view.vanishing_x + reach:
        right = left + side * float(rng.uniform(0.06, 0.2))
        top = view.horizon - side * float(rng.uniform(0.02, 0.16))
        base = view.horizon + 0.04 * side
        kind = rng.random()
        if kind < 0.5:
            house = painter.cover([[(left, top), (right, top), (right, base), (left, base)]])
            painter.fill(house, _wall_colour(rng), BUILDING, 6)
        elif kind < 0.85:
            centre = ((left + right) / 2, view.horizon - 0.01 * side)
            bush = painter.cover([], [(centre, 0.7 * (right - left), (base - top) * 0.7)])
            painter.fill(bush, _leaf_colour(rng), VEGETATION, 12)
        left = right


def _draw_row(painter: _Painter, view: _View, side: int) -> None:
    """The houses, hedges and gaps along one side of the street, from far to near."""
    rng = painter.rng
    reach = (painter.width - view.vanishing_x) if side > 0 else view.vanishing_x
    near = painter.height * float(rng.uniform(0.08, 0.2))  # distance from the vanishing point, pixels
    while near < reach:
        far = near
        near = far * float(rng.uniform(1.3, 2.2)) + 0.05 * painter.height
        kind = rng.random()
        if kind < 0.72:
            _draw_house(painter, view, side, far, near)
        elif kind < 0.9:
            _draw_hedge(painter, view, side, far, near)


def _draw_house(painter: _Painter, view: _View, side: int, far: float, near: float) -> None:
    """A wall in perspective between two distances from the vanishing point, with windows and perhaps eaves."""
    rng = painter.rng
    tall = float(np.exp(rng.uniform(np.log(0.35), np.log(1.5))))

    def corner(along: float, up: float) -> Point:
        """A point of the wall; along from far (0) to near (1), up from the ground (0) to the eaves (1)."""
        distance = far + along * (near - far)
        rise = up * (tall + view.wall) - view.wall
        return view.vanishing_x + side * distance, view.horizon - rise * distance

    def quad(low: Point, high: Point) -> Polygon:
        return [corner(low[0], low[1]), corner(high[0], low[1]), corner(high[0], high[1]), corner(low[0], high[1])]

    colour = _wall_colour(rng)
    painter.fill(painter.cover([quad((0, 0), (1, 1))]), colour, BUILDING, 8)
    if rng.random() < 0.5:  # eaves or a flat roof's edge
        painter.fill(painter.cover([quad((0, 0.94), (1, 1.0))]), colour * rng.uniform(0.4, 0.8), None)
    columns, floors = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    wide, high = float(rng.uniform(0.35, 0.6)) / columns, float(rng.uniform(0.35, 0.6)) / floors
    windows = [
        quad((x, y), (x + wide, y + high))
        for x in ((column + 0.25) / columns for column in range(columns))
        for y in ((floor + 0.3) / floors for floor in range(floors))
    ]
    glass = rng.uniform(20, 90, 3) if rng.random() < 0.7 else rng.uniform(180, 240, 3)
    painter.fill(painter.cover(windows), glass, None)


def _draw_hedge(painter: _Painter, view: _View, side: int, far: float, near: float) -> None:
    """Bushes and trees where a house could stand."""
    rng = painter.rng
    leaves = []
    for distance in np.linspace(far, near, 5):
        radius = float(distance) * float(rng.uniform(0.15, 0.35))
        centre = (view.vanishing_x + side * float(distance), view.horizon - radius * float(rng.uniform(0.1, 0.8)))
        leaves.append((centre, radius, radius))
    ends = [(view.vanishing_x + side * distance, distance) for distance in (far, near)]
    hedge = [(x, view.horizon + view.wall * distance) for x, distance in ends]
    hedge += [(x, view.horizon - 0.08 * distance) for x, distance in reversed(ends)]
    painter.fill(painter.cover([hedge], leaves), _leaf_colour(rng), VEGETATION, 16)


def _draw_ground(painter: _Painter, view: _View) -> None:
    """Sidewalks up to the walls, the road between the kerbs, and markings on it."""
    rng, bottom = painter.rng, 2.0 * painter.height
    depth = bottom - view.horizon

    def wedge(slope_left: float, slope_right: float) -> Polygon:
        """The ground between two lines that leave the vanishing point; slopes below 0 are on the left."""
        start = (view.vanishing_x, view.horizon)
        return [start, (start[0] + depth / slope_left, bottom), (start[0] + depth / slope_right, bottom)]

    pavement = rng.uniform(80, 190) + rng.normal(0, 14, 3)
    alpha = painter.cover([wedge(-view.wall, view.wall)])
    painter.fill(alpha, pavement, SIDEWALK, 7)
    if rng.random() < 0.6:  # joints between the slabs
        slabs = [wedge(slope, slope * 1.04) for part in (0.5, 0.7) for slope in (-view.kerb * part, view.kerb * part)]
        painter.fill(0.5 * painter.cover(slabs), pavement * 0.75, None)
    asphalt = rng.uniform(50, 145) + rng.normal(0, 6, 3)
    painter.fill(painter.cover([wedge(-view.kerb, view.kerb)]), asphalt, ROAD, 6)
    kerbs = painter.cover([wedge(slope, slope * 1.08) for slope in (-view.kerb, view.kerb)])
    painter.fill(0.8 * kerbs, rng.uniform(130, 210) * np.ones(3), None)
    if rng.random() < 0.75:
        _draw_markings(painter, view)


def _draw_markings(painter: _Painter, view: _View) -> None:
    """A dashed line between two lanes."""
    rng = painter.rng
    offset = float(rng.uniform(-0.3, 0.3)) / view.kerb  # pixels sideways per pixel down
    half = float(rng.uniform(0.03, 0.06)) / view.kerb
    dashes = []
    depth = 0.06 * painter.height * float(rng.uniform(1, 2))
    while depth < painter.height:
        end = depth * float(rng.uniform(1.25, 1.45))
        dashes.append(
            [
                (view.vanishing_x + (offset + sign * half) * down, view.horizon + down)
                for sign, down in ((-1, depth), (1, depth), (1, end), (-1, end))
            ]
        )
        depth = end * 1.35
    painter.fill(0.85 * painter.cover(dashes), rng.uniform(180, 240) * np.ones(3), None)


def _draw_things(painter: _Painter, view: _View) -> None:
    """Trees, poles, cars and persons at random depths, the far ones first."""
    rng = painter.rng
    counts = (("tree", 0, 5), ("pole", 0, 4), ("car", 1, 6), ("person", 1, 7))
    nearest = painter.height - view.horizon
    things = [
        (float(np.exp(rng.uniform(np.log(0.1 * nearest), np.log(0.85 * nearest)))), name)
        for name, low, high in counts
        for _ in range(int(rng.integers(low, high)))
    ]
    for depth, name in sorted(things):
        side = 1 if rng.random() < 0.5 else -1
        beside = float(rng.uniform(view.wall * 1.15, view.kerb * 0.9))  # a line on the sidewalk
        if name == "tree":
            _draw_tree(painter, view.stand(depth, beside, side), depth)
        elif name == "pole":
            _draw_pole(painter, view.stand(depth, view.kerb * 0.9, side), depth)
        elif name == "car":
            _draw_car(painter, view.stand(depth, view.kerb / float(rng.uniform(0.1, 0.8)), side), depth)
        elif rng.random() < 0.75:
            _draw_person(painter, view.stand(depth, beside, side), depth)
        else:
            _draw_person(painter, view.stand(depth, view.kerb / float(rng.uniform(0.1, 0.9)), side), depth)


def _draw_tree(painter: _Painter, foot: Point, depth: float) -> None:
    """A trunk under a round crown; both are vegetation."""
    rng, (x, y) = painter.rng, foot
    trunk, thick = depth * float(rng.uniform(1.4, 2.4)), depth * float(rng.uniform(0.07, 0.14))
    bark = np.array([85.0, 65.0, 50.0]) * rng.uniform(0.5, 1.4)
    painter.fill(painter.cover([_trapezoid(foot, thick, (x, y - trunk), 0.7 * thick)]), bark, VEGETATION)
    radius = depth * float(rng.uniform(0.6, 1.1))
    leaves = [
        (
            (x + radius * float(rng.uniform(-0.6, 0.6)), y - trunk - radius * float(rng.uniform(0, 1))),
            radius * float(rng.uniform(0.6, 0.9)),
            radius * float(rng.uniform(0.6, 0.9)),
        )
        for _ in range(5)
    ]
    painter.fill(painter.cover([], leaves), _leaf_colour(rng), VEGETATION, 16)


def _draw_pole(painter: _Painter, foot: Point, depth: float) -> None:
    """A thin pole, perhaps with a sign: void."""
    rng, (x, y) = painter.rng, foot
    tall, half = depth * float(rng.uniform(1.8, 4.0)), max(0.5, depth * 0.035)
    grey = rng.uniform(50, 170) * np.ones(3)
    painter.fill(painter.cover([_trapezoid(foot, half, (x, y - tall), half)]), grey, VOID_ID)
    if rng.random() < 0.5:
        sign = painter.cover([], [((x, y - tall), depth * 0.22, depth * 0.22)])
        painter.fill(sign, rng.uniform(0, 255, 3), VOID_ID)


def _draw_car(painter: _Painter, foot: Point, depth: float) -> None:
    """A car from behind or from the side, with its shadow on the road."""
    rng, (x, y) = painter.rng, foot
    from_side = rng.random() < 0.3
    half = depth * float(rng.uniform(1.2, 1.5) if from_side else rng.uniform(0.6, 0.75))
    tall = depth * float(rng.uniform(0.95, 1.25))
    waist, tyre = y - 0.55 * tall, 0.16 * tall
    shadow = painter.cover([], [((x, y), half * 1.15, tall * 0.1)])
    painter.fill(0.6 * shadow, np.array([25.0, 25.0, 28.0]), None)
    roof = half * (0.55 if from_side else 0.75)
    shift = half * float(rng.uniform(-0.15, 0.15)) if from_side else 0.0
    cabin = _trapezoid((x, waist), half * 0.92, (x + shift, y - tall), roof)
    body = _trapezoid((x, y - tyre), half, (x, waist), half)
    ends = (0.6, 0.28) if from_side else (0.78, 0.15)  # where the tyres are, and half their width
    tyres = [((x + sign * ends[0] * half, y - tyre), half * ends[1], tyre) for sign in (-1, 1)]
    rubber = painter.cover([], tyres)
    painter.fill(rubber, np.array([22.0, 22.0, 24.0]), CAR)
    shell = painter.cover([cabin, body])
    paint_shape(rng, painter.canvas, shell)
    painter.mark(shell, CAR)
    middle = (x + shift / 2, (waist + y - tall) / 2)
    glass = [(middle[0] + 0.82 * (a - middle[0]), middle[1] + 0.82 * (b - middle[1])) for a, b in cabin]
    painter.fill(painter.cover([glass]), rng.uniform(20, 110) * np.ones(3), None)
    if not from_side:
        lamp = np.array([200.0, 30.0, 25.0]) if rng.random() < 0.6 else np.array([245.0, 240.0, 200.0])
        lamps = [((x + sign * half * 0.8, waist + 0.15 * tall), half * 0.15, tall * 0.07) for sign in (-1, 1)]
        painter.fill(painter.cover([], lamps), lamp, None)


def _draw_person(painter: _Painter, foot: Point, depth: float) -> None:
    """Head, trunk and two legs; clothes of any colour."""
    rng, (x, y) = painter.rng, foot
    tall = depth * float(rng.uniform(1.15, 1.5))
    shoulder, hip = y - 0.83 * tall, y - 0.47 * tall
    wide, stride = 0.15 * tall, tall * float(rng.uniform(0.03, 0.15))
    trunk = painter.cover([_trapezoid((x, hip), wide * 0.75, (x, shoulder), wide)])
    feet = ((x - stride, y), (x + stride, y))
    legs = painter.cover([_trapezoid(end, 0.06 * tall, (x, hip), wide * 0.75) for end in feet])
    head = painter.cover([], [((x, y - 0.91 * tall), 0.085 * tall, 0.1 * tall)])
    painter.fill(legs, rng.uniform(15, 130, 3), PERSON)
    paint_shape(rng, painter.canvas, trunk)
    painter.mark(trunk, PERSON)
    painter.fill(head, np.array([205.0, 160.0, 130.0]) * rng.uniform(0.4, 1.1), PERSON)


def _trapezoid(low: Point, half_low: float, high: Point, half_high: float) -> Polygon:
    """A trapezoid between two level edges, each given by its middle and half its length."""
    return [
        (low[0] - half_low, low[1]),
        (low[0] + half_low, low[1]),
        (high[0] + half_high, high[1]),
        (high[0] - half_high, high[1]),
    ]


def _draw_bonnet(painter: _Painter) -> None:
    """The bonnet of the car that carries the camera, at the bottom: void."""
    rng = painter.rng
    centre = (painter.width * float(rng.uniform(0.45, 0.55)), painter.height * 1.1)
    bonnet = painter.cover([], [(centre, painter.width * 0.6, painter.height * float(rng.uniform(0.14, 0.22)))])
    painter.fill(bonnet, rng.uniform(15, 90) + rng.normal(0, 4, 3), VOID_ID)


def _wall_colour(rng: np.random.Generator) -> np.ndarray:
    """Plaster, brick or concrete: any light grey to strong colour."""
    grey = rng.uniform(70, 215)
    return np.clip(grey + rng.normal(0, math.sqrt(grey) * 1.8, 3), 20, 245)


def _leaf_colour(rng: np.random.Generator) -> np.ndarray:
    """Mostly green, sometimes autumn."""
    base = np.array([150.0, 95.0, 40.0]) if rng.random() < 0.2 else np.array([70.0, 105.0, 50.0])
    return np.clip(base * rng.uniform(0.5, 1.35) + rng.normal(0, 10, 3), 5, 240)
