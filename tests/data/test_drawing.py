"""Pictures: annotations lie where they are, in the colour of their class; and a sheet holds them all."""

import numpy as np
import torch

from nas_transfer.data.drawing import (
    LEFT,
    MIDDLE,
    RIGHT,
    TILE,
    Picture,
    class_colour,
    contact_sheet,
    draw_instances,
    draw_keypoints,
    draw_label_map,
)

GREY = torch.full((3, 80, 160), 100, dtype=torch.uint8)  # drawn at twice its size


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


def test_a_box_is_outlined_and_its_mask_tinted_in_the_colour_of_the_class() -> None:
    masks = torch.zeros(1, 80, 160, dtype=torch.uint8)
    masks[0, 40:50, 70:90] = 1
    picture = draw_instances(GREY, torch.tensor([[60.0, 30.0, 100.0, 60.0]]), [1], ["a", "b"], masks)
    drawn = pixels(picture)
    assert drawn.shape == (TILE // 2, TILE, 3)
    outline = (drawn == class_colour(1)).all(-1)
    rows, columns = np.nonzero(outline)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (120, 60, 200, 120)
    mixed = (np.array(class_colour(1)) + 100) / 2
    np.testing.assert_allclose(drawn[80:100, 140:180], np.broadcast_to(mixed, (20, 40, 3)), atol=1.5)
    assert (drawn[105:115, 140:180] == 100).all()
    assert picture.caption == "1 object"


def test_keypoints_are_drawn_where_they_are_and_by_side() -> None:
    points = torch.tensor([[20.0, 20.0], [60.0, 20.0], [40.0, 40.0], [130.0, 60.0]])
    drawn = pixels(draw_keypoints(GREY, points, [True, True, True, False], [(0, 1)], [(0, 2)]))
    for (x, y), colour in zip(points[:3].tolist(), (LEFT, MIDDLE, RIGHT), strict=True):
        assert tuple(drawn[round(2 * y + 0.5), round(2 * x + 0.5)]) == colour
    assert tuple(drawn[round(2 * 20 + 0.5), 80]) == MIDDLE  # a limb between two sides
    assert (drawn[100:, 220:] == 100).all()  # an unlabelled point is not drawn


def test_a_label_map_tints_each_class_and_leaves_what_is_ignored() -> None:
    labels = torch.zeros(80, 160, dtype=torch.uint8)
    labels[:, 80:] = 1
    labels[60:] = 255
    picture = draw_label_map(GREY, labels, ["a", "b", "c"])
    drawn = pixels(picture)
    for label, part in ((0, drawn[:120, :160]), (1, drawn[:120, 160:])):
        mixed = (np.array(class_colour(label)) + 100) / 2
        np.testing.assert_allclose(part, np.broadcast_to(mixed, part.shape), atol=1.5)
    assert (drawn[120:] == 100).all()
    assert picture.legend == {"a": class_colour(0), "b": class_colour(1)}
    assert picture.caption == "2 classes, 25% ignored"


def test_the_background_of_a_label_map_stays_pale() -> None:
    drawn = pixels(draw_label_map(GREY, torch.zeros(80, 160, dtype=torch.uint8), ["_background_"]))
    tinted = 0.88 * 100 + 0.12 * np.array(class_colour(0))
    np.testing.assert_allclose(drawn, np.broadcast_to(tinted, drawn.shape), atol=1.5)


def test_a_sheet_holds_every_picture_and_the_legend() -> None:
    labels = torch.ones(80, 160, dtype=torch.uint8)
    pictures = [draw_label_map(GREY, labels, ["a", "b"]) for _ in range(5)]
    sheet = np.asarray(contact_sheet(pictures))
    own = pixels(pictures[0])
    found = [
        (top, left)
        for top in range(0, sheet.shape[0] - own.shape[0] + 1)
        for left in (8, 8 + TILE + 8, 8 + 2 * (TILE + 8))
        if np.array_equal(sheet[top : top + own.shape[0], left : left + TILE], own)
    ]
    assert len(found) == 5
    assert (sheet[-18:, :] == class_colour(1)).all(-1).any()


def test_neighbouring_classes_differ_in_colour() -> None:
    colours = np.array([class_colour(k) for k in range(80)], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[np.arange(79), np.arange(1, 80)].min() > 100
    assert np.unique(colours, axis=0).shape[0] == 80
