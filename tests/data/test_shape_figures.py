"""The drawn figures: repeatable, and annotated where they are drawn."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from nas_transfer.data.synthetic.figures import KEYPOINT_NAMES, annotate_figure, draw_figures, write_keypoints_part


def test_an_image_depends_on_seed_part_and_index_alone() -> None:
    first = draw_figures("train", 3, 96, 0)[0]
    np.random.default_rng().random(5)
    assert np.array_equal(draw_figures("train", 3, 96, 0)[0], first)
    for other in (("val", 3, 96, 0), ("train", 4, 96, 0), ("train", 3, 96, 1)):
        assert not np.array_equal(draw_figures(*other)[0], first)


def test_joints_lie_on_the_figure_and_hidden_ones_are_marked() -> None:
    seen = {0: 0, 1: 0, 2: 0}
    for index in range(40):
        _, figures = draw_figures("train", index, 96, 0)
        for number, figure in enumerate(figures):
            hidden = np.zeros_like(figure.covered)
            for other in figures[number + 1 :]:
                hidden |= other.covered
            record = annotate_figure(figure, hidden)
            left, top, width, height = record["bbox"]
            for x, y, v in np.asarray(record["keypoints"]).reshape(-1, 3):
                seen[int(v)] += 1
                if v:
                    assert figure.covered[round(y), round(x)]
                    assert left <= round(x) < left + width
                    assert top <= round(y) < top + height
                assert v == 0 or (v == 1) == bool(hidden[round(y), round(x)])
            assert record["num_keypoints"] == sum(v > 0 for v in record["keypoints"][2::3])
    assert min(seen.values()) > 5


def test_a_part_is_written_in_cocos_keypoint_layout(tmp_path: Path) -> None:
    write_keypoints_part(tmp_path, "val", 4, 64, 0)
    content = json.loads((tmp_path / "annotations/person_keypoints_val2017.json").read_text())
    assert content["categories"][0]["keypoints"] == list(KEYPOINT_NAMES)
    assert {a["image_id"] for a in content["annotations"]} == {1, 2, 3, 4}
    for image in content["images"]:
        assert Image.open(tmp_path / "val2017" / image["file_name"]).size == (64, 64)
