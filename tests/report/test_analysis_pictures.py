"""The pictures of an analysis in a run folder, and what its matrix and figures show."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from nas_transfer.report.analysis import analysis_figures, class_table, worst_table
from nas_transfer.report.analysis_pictures import draw_analysis
from nas_transfer.runs import BACKGROUND, Analysis, ClassScores, ConfusionMatrix
from tests.report.test_choice import analysis


def test_every_part_of_an_analysis_is_drawn(tmp_path: Path) -> None:
    dollars = replace(analysis(), classes=(ClassScores("$cat$ \\frac", 7, {"map": 0.5}), ClassScores("x", 0, {})))
    paths = draw_analysis(dollars, tmp_path / "analysis")
    assert [path.name for path in paths] == [
        "classes.png", "precision_recall.png", "threshold.png", "confusion_matrix.png",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10
    names = tuple(map(str, range(80)))
    many = Analysis(
        9, "images", "class", tuple(ClassScores(name, 1, {"accuracy": 0.5}) for name in names),
        confusion=ConfusionMatrix(names, tuple(tuple(int(k == j) for k in range(80)) for j in range(80))),
    )  # fmt: skip
    assert len(draw_analysis(many, tmp_path / "many")) == 2
    assert draw_analysis(Analysis(0, "images", "class", ()), tmp_path / "none") == []


def test_rows_of_a_confusion_matrix_are_shares_of_their_class_and_the_background_of_what_is_predicted() -> None:
    matrix = ConfusionMatrix(("a", "b", BACKGROUND), ((3, 1, 4), (0, 0, 0), (1, 2, 0)))
    assert matrix.shares == ((3 / 8, 1 / 8, 4 / 8), (0, 0, 0), (1 / 4, 2 / 3, 0))
    with pytest.raises(ValueError, match="3 x 3"):
        ConfusionMatrix(("a", "b", "c"), ((1, 2), (3, 4)))


def test_figures_of_the_page_show_curves_threshold_and_every_cell() -> None:
    precision_recall, threshold, confusion = analysis_figures(analysis())
    assert [label for label, _ in precision_recall.legend] == ["cat"]
    assert {label for label, _ in threshold.legend} == {"F1", "precision", "recall", "recommended"}
    assert ">0.40</text>" in threshold.svg
    assert confusion.svg.count('class="cell"') == 9
    many = replace(analysis(), classes=tuple(ClassScores(str(k), 1, {}) for k in range(9)))
    assert analysis_figures(many)[0].legend == ()


def test_tables_state_percentages_and_leave_out_what_is_undefined() -> None:
    table = class_table(
        Analysis(
            3, "objects", "class", (ClassScores("cat", 7, {"map": 0.5, "best_threshold": 0.4}), ClassScores("x", 0, {}))
        )
    )
    assert table.columns == ("class", "objects", "mAP (%)", "best threshold")
    assert table.rows == (("cat", "7", "50.00", "0.40"), ("x", "0", "—", "—"))
    assert worst_table(Analysis(3, "objects", "class", ())) is None
