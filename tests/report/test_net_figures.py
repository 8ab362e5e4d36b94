"""Charts of fine-tuned nets: comparable scores alone, each supernet told apart, published nets where they compare."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_transfer.report.arch_drawing import draw_arch
from nas_transfer.report.collect import read_run
from nas_transfer.report.net_figures import net_figures, non_dominated_nets
from nas_transfer.report.nets import Net, nets_of
from nas_transfer.report.plots import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Figure
from nas_transfer.report.published import PUBLISHED
from nas_transfer.runs import Costs
from tests.report.run_folders import space_arch, write_run

POINT = re.compile(r'<g class="mark (s\d) (\w+)"><\w+ ([^>]*)/><title>(.*?)</title></g>', re.DOTALL)
MATCHING = {"coco_det": ((800, 1333), 80), "coco_pose": ((256, 192), 17), "cityscapes_seg": ((512, 1024), 19)}


def net(folder: Path, task: str, name: str, *, space: str = "lite", root: str = "data/own", **changes: Any) -> Net:
    """A fine-tuned net: `body` and `head` MACs (no `body` if None), `size`, `classes` and fields of its result."""
    body, head = changes.pop("body", 80e6), changes.pop("head", 20e6)
    parts = {"head": round(head), "total": round((body or 0) + head)}
    macs = parts if body is None else {"body": round(body), **parts}
    costs = Costs(macs, {"total": 1_000_000}, 1_000_000, changes.pop("size", (96, 128)), changes.pop("classes", 6))
    settings = {"data.root": root, "arch": changes.pop("named", "picked.yaml")}
    path = write_run(folder / task / name, "finetune", task, settings, arch=space_arch(space), costs=costs, **changes)
    (made,) = nets_of([read_run(path)])
    return made


def drawn(nets: list[Net]) -> list[Figure]:
    return net_figures(nets[0].kind, nets)


def points(figure: Figure) -> list[tuple[str, str, str, str]]:
    """(colour, marker, where, title) of each."""
    return [(colour, marker, where, unescape(title)) for colour, marker, where, title in POINT.findall(figure.svg)]


def place(where: str) -> tuple[float, float]:
    """Where a circle is."""
    x, y = re.findall(r'c[xy]="([\d.]+)"', where)
    return float(x), float(y)


def test_each_task_and_data_set_has_its_own_chart_and_a_lone_net_has_none(tmp_path: Path) -> None:
    nets = [
        *(net(tmp_path, "shapes_det", f"a{number}", score=0.4) for number in range(3)),
        *(net(tmp_path, "shapes_det", f"b{number}", root="data/other", score=0.5) for number in range(2)),
        *(net(tmp_path, "small_det", f"c{number}", score=0.6) for number in range(2)),
        net(tmp_path, "small_det", "lone", root="data/other"),
    ]
    figures = drawn(nets)
    wheres = ("shapes_det on own", "shapes_det on other", "small_det on own")
    assert [figure.title for figure in figures] == [f"{where}: mAP against MACs" for where in wheres]
    for figure, kept in zip(figures, (nets[:3], nets[3:5], nets[5:7]), strict=True):
        assert {title.splitlines()[2] for *_, title in points(figure)} == {str(own.folder) for own in kept}


def test_each_supernet_has_one_look_in_all_charts_and_its_name_in_the_legend(tmp_path: Path) -> None:
    spaces = ("lite", "resnet50", "mobile")
    nets = [
        net(tmp_path, task, f"{space}{number}", space=space, named="max" if space == "resnet50" else "picked.yaml")
        for task, own in (("shapes_det", spaces), ("small_det", spaces[1:]))
        for space in own
        for number in range(3 if own == spaces else 2)
    ]
    first, second = drawn(nets)
    looks: dict[str, set[tuple[str, str]]] = {space: set() for space in spaces}
    for figure in (first, second):
        for colour, marker, _, title in points(figure):
            looks[next(space for space in spaces if f"/{space}" in title)].add((colour, marker))
    assert re.findall(r'class="name".*?>(.*?)</text>', first.svg) == ["max"]  # nine nets, of which one can be named
    names = [net.folder.name for net in nets if net.run.task == "small_det"]
    assert re.findall(r'class="name".*?>(.*?)</text>', second.svg) == names
    assert all(len(own) == 1 for own in looks.values())
    assert len(set.union(*looks.values())) == 3
    assert [label for label, _ in first.legend] == ["lite", "resnet50", "mobile", "front"]
    for label, classes in first.legend[:3]:
        assert tuple(classes.split()) in looks[label]
    assert [label for label, _ in second.legend] == ["resnet50", "mobile", "front"]


@pytest.mark.parametrize("seed", range(5))
def test_the_line_goes_through_the_nets_that_no_other_beats(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [(int(macs), int(score)) for macs, score in zip(rng.integers(1, 9, 12), rng.integers(1, 9, 12))]
    values += [(20, 20), (30, 30)]  # so that there are two at least
    nets = [
        net(tmp_path, "shapes_det", f"{number:02d}", body=macs * 1e7, head=0.0, score=score / 100)
        for number, (macs, score) in enumerate(values)
    ]
    best = [
        one for one in values if not any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in values)
    ]
    assert sorted(values[int(own.folder.name)] for own in non_dominated_nets(nets, "total")) == sorted(best)
    (figure,) = drawn(nets)
    at = {values[int(title.splitlines()[2][-2:])]: place(where) for _, _, where, title in points(figure)}
    path = re.search(r'<path class="line s0" d="M([\d.]+) ([\d.]+)([^"]*)"', figure.svg)
    assert path is not None
    corners = re.findall(r"H([\d.]+)V([\d.]+)", path[3])
    assert {(float(x), float(y)) for x, y in [(path[1], path[2]), *corners]} == {at[one] for one in best}


@pytest.mark.parametrize("task", MATCHING)
def test_published_nets_stand_beside_a_single_one_of_the_same_size_and_classes(tmp_path: Path, task: str) -> None:
    size, classes = MATCHING[task]
    (figure,) = drawn([net(tmp_path, task, "a", size=size, classes=classes)])
    published = [title for _, marker, _, title in points(figure) if marker == "hollow"]
    assert len(published) == 4
    assert all("published, not run here" in title and "Transfer learning supernet" in title for title in published)
    assert ("published, not run here", "s0 hollow") in figure.legend
    (table,) = (own for own in PUBLISHED if own.task == task)
    for row in table.nets:
        assert f"{row.score:g} %, {row.mega_macs:g} M MACs" in figure.note


@pytest.mark.parametrize("task", MATCHING)
@pytest.mark.parametrize("wrong", ["size", "classes", "task"])
def test_published_nets_are_left_out_where_they_mean_something_else(tmp_path: Path, task: str, wrong: str) -> None:
    size, classes = MATCHING[task]
    costs: dict[str, Any] = {"size": size, "classes": classes}
    if wrong == "size":
        costs["size"] = (size[0], size[1] + 1)
    if wrong == "classes":
        costs["classes"] = classes + 1
    named = task.replace("coco", "shapes").replace("cityscapes", "shapes") if wrong == "task" else task
    lone = net(tmp_path, named, "a", **costs)
    assert drawn([lone]) == []
    (figure,) = drawn([lone, net(tmp_path, named, "b", **costs)])
    assert "hollow" not in figure.svg
    assert "ublished" not in figure.note


def test_a_pose_net_is_drawn_at_its_bodys_macs_as_the_published_ones_are(tmp_path: Path) -> None:
    own = net(tmp_path, "coco_pose", "a", size=(256, 192), classes=17, body=339e6, head=1064e6, score=0.6608)
    (figure,) = drawn([own])
    assert "MACs of the body alone, at 256x192" in figure.svg
    places = {title.splitlines()[0 if marker == "dot" else 1]: place(at) for _, marker, at, title in points(figure)}
    assert places["AP 66.08 %"] == places["Topdown_bignas_250M: AP 66.08 %, 339 M MACs"]
    whole = net(tmp_path, "coco_det", "a", size=(800, 1333), classes=80, body=7.937e9, head=120e9, score=0.369)
    (figure,) = drawn([whole])
    assert "MACs of all parts, at 800x1333" in figure.svg
    places = {title.splitlines()[0 if marker == "dot" else 1]: place(at) for _, marker, at, title in points(figure)}
    assert places["mAP 36.90 %"] == places["bignas_faster_rcnn_250M: mAP 36.9 %, 127937 M MACs"]


def test_a_pose_net_that_does_not_state_its_bodys_macs_is_beside_no_published_one(tmp_path: Path) -> None:
    nets = [
        net(tmp_path, "coco_pose", name, size=(256, 192), classes=17, body=body)
        for name, body in (("a", None), ("b", 80e6))
    ]
    (figure,) = drawn(nets)
    assert "MACs of all parts" in figure.svg
    assert "hollow" not in figure.svg


def test_published_macs_are_those_of_the_same_bodies_at_three_sizes() -> None:
    """Detection and segmentation run the body of the pose net at more pixels, and a head of constant cost."""
    macs = {table.task: np.asarray([own.mega_macs for own in table.nets]) for table in PUBLISHED}
    sizes = {table.task: table.input_size for table in PUBLISHED}
    for task, tolerance in (("coco_det", 0.01), ("cityscapes_seg", 0.02)):
        slope, offset = np.polyfit(macs["coco_pose"], macs[task], 1)
        assert np.abs(np.polyval([slope, offset], macs["coco_pose"]) - macs[task]).max() < 14
        assert slope == pytest.approx(np.prod(sizes[task]) / np.prod(sizes["coco_pose"]), rel=tolerance)
    scores = [[own.score for own in table.nets] for table in PUBLISHED]
    assert scores == [[36.9, 37.0, 38.2, 39.1], [66.08, 66.23, 67.38, 68.42], [69.45, 68.54, 71.45, 73.2]]


def test_names_of_close_nets_stay_apart_and_inside(tmp_path: Path) -> None:
    nets = [
        net(tmp_path, "shapes_det", f"demo_{number}", body=(100 + 3 * number) * 1e6, score=0.25 + 0.001 * (number % 2))
        for number in range(5)
    ]
    nets.append(net(tmp_path, "shapes_det", "largest", body=200e6, score=0.35))
    (figure,) = drawn(nets)
    texts = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)">(.*?)<', figure.svg)
    assert {name for *_, name in texts} == {own.folder.name for own in nets}
    boxes = [(float(x), float(x) + 7 * len(name), float(y)) for x, y, name in texts]
    for place, (left, right, base) in enumerate(boxes):
        assert left >= LEFT
        assert right <= WIDTH
        assert TOP - 12 <= base <= HEIGHT - BOTTOM
        for other_left, other_right, other_base in boxes[:place]:
            assert right <= other_left or other_right <= left or abs(base - other_base) >= 10


def test_data_sets_whose_last_folders_are_alike_stay_apart(tmp_path: Path) -> None:
    nets = [
        net(tmp_path, "shapes_det", f"{camera}{number}", root=f"{camera}/data", score=0.4)
        for camera in ("left", "right")
        for number in range(2)
    ]
    nets.append(net(tmp_path, "shapes_det", "left_again", root="./left/data/", score=0.5))
    figures = drawn(nets)
    assert sorted(len(points(figure)) for figure in figures) == [2, 3]
    assert [figure.title.split()[2] for figure in figures] == ["left/data:", "right/data:"]


def test_a_drawn_arch_states_the_genes_of_its_task() -> None:
    arch = {
        "space": "tiny",
        "width": [8, 16, 32],
        "depth": [1],
        "kernel_size": [3],
        "expand_ratio": [2],
        "min_size": 192,
    }
    figure = draw_arch(arch, (), "picked")
    assert "; min_size 192; block: kernel size" in figure.note


def test_an_arch_with_widths_of_its_stages_alone_is_drawn_stage_by_stage() -> None:
    arch = {"space": "tiny", "width": [40, 80], "depth": [1, 2], "kernel_size": [7, 3], "expand_ratio": [4, 2]}
    figure = draw_arch(arch, (), "picked")
    assert figure.svg.count('class="block"') == 3
    assert "stage 2, block 2: kernel 3, expand 2, width 80" in figure.svg
    assert "convolution" not in figure.svg
