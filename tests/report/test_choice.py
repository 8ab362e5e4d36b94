"""The opening of the report: the recommended net, what is said about the whole network, and what the slider does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas_transfer.report.choice import choices
from nas_transfer.report.choice_texts import answer_text, range_text
from nas_transfer.report.collect import find_runs, read_runs
from nas_transfer.report.content import make_report
from nas_transfer.report.nets import nets_of
from nas_transfer.report.page import write_report
from nas_transfer.report.studies import read_study
from nas_transfer.runs import (
    Analysis,
    Ancestor,
    ClassScores,
    ConfusionMatrix,
    ExportSummary,
    ImageScore,
    PrecisionRecall,
    ThresholdCurve,
    Trial,
    read_front,
    read_result,
)
from tests.report.run_folders import arch, costs, write_run, write_study
from tests.report.test_report import in_a_browser, needs_browser

WHOLE = arch(50).to_dict()
SMALLER = {**WHOLE, "resolution": 64}
TASK = "finetune/shapes_det"


def write_net(runs: Path, name: str, content: Mapping[str, object], score: float, macs: float, **changes: Any) -> None:
    """A fine-tuned net with a second metric, and its export with a latency of a millisecond for each 10 M MACs."""
    settings = {"arch": "max" if name.startswith("whole") else f"archs/{name}.yaml"}
    size = changes.pop("input_size", (96, 128))
    params = changes.pop("params", 1_200_000)
    cost = replace(costs(macs), input_size=size, params={"body": params, "total": params})
    metrics = {"map": score, "map_50": score + 0.2, "mar_1": 0.1}
    fields = {"arch": content, "score": score, "costs": cost, "metrics": metrics, **changes}
    write_run(runs / TASK / name, "finetune", "shapes_det", settings, **fields)
    ancestor = Ancestor(f"{name}/weights.pt", "d" * 64, "nas_transfer/3", config_sha256=name)
    summary = ExportSummary({}, score, {"onnxruntime": macs / 1e7}, size, 1)
    write_run(runs / "export/shapes_det" / name, "export", "shapes_det", export=summary, provenance=(ancestor,))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The whole network, at a smaller input too, and two nets of a search; the better one is nearly as good."""
    study = write_study(tmp_path / "search/shapes_det/a")
    front = read_front(study)
    found, cheap = (Trial(70 + k, arch(60 + k).to_dict(), {"score": 0.5, "macs": 1e8}) for k in range(2))
    replace(front, trials=(*front.trials, found, cheap)).write(study)
    write_net(tmp_path, "whole", WHOLE, 0.50, 200e6)
    write_net(tmp_path, "smaller", SMALLER, 0.40, 100e6, input_size=(64, 96))
    write_net(tmp_path, "found", found.arch, 0.495, 120e6, params=900_000)
    write_net(tmp_path, "cheap", cheap.arch, 0.20, 60e6, params=500_000)
    return tmp_path


def choice_of(runs: Path) -> Any:
    found = read_runs(find_runs([str(runs)])[0])
    studies = [study for run in found if (study := read_study(run)) is not None]
    (choice,) = choices(nets_of(found), studies, found)
    return choice


def test_the_cheapest_net_within_a_point_of_the_best_is_recommended_and_its_saving_said(runs: Path) -> None:
    choice = choice_of(runs)
    assert [one.name for one in choice.candidates] == ["cheap", "smaller", "found", "whole"]
    assert {one.name: one.origin for one in choice.candidates} == {
        "cheap": "route A", "smaller": "whole network, smaller input", "found": "route A", "whole": "whole network",
    }  # fmt: skip
    assert (choice.pick.name, choice.whole.name) == ("found", "whole")
    assert choice.gain(choice.pick) == pytest.approx(0.495 - np.interp(120, [100, 200], [0.4, 0.5]))
    answer = answer_text(choice)
    assert "found (route A) is the cheapest net within 1 point of the best score: 49.50 % mAP, 69.50 % mAP50" in answer
    assert (
        "It saves 40 % of the MACs and 40 % of the latency at -0.5 points, compared with the whole network at 96x128."
        in answer
    )
    assert "The whole network on smaller images would score 7.5 points less at the same MACs." in answer


def test_narrower_heads_of_the_whole_network_are_a_baseline(runs: Path) -> None:
    narrow = {**WHOLE, "fpn_channels": 32}
    study = runs / "search/shapes_det/a"
    front = read_front(study)
    replace(front, narrowed=(Trial(80, narrow, {"score": 0.5, "macs": 1.1e8}),)).write(study)
    write_net(runs, "narrow", narrow, 0.492, 110e6, params=800_000)
    choice = choice_of(runs)
    assert {one.name: one.origin for one in choice.candidates}["narrow"] == "whole network, narrower heads"
    assert [one.name for one in choice.baselines] == ["smaller", "narrow", "whole"]
    assert choice.pick.name == "narrow"  # cheaper than the found net, and within a point of the best score
    found = next(one for one in choice.candidates if one.name == "found")
    assert choice.gain(found) == pytest.approx(0.495 - np.interp(120, [110, 200], [0.492, 0.5]))
    answer = answer_text(choice)
    assert "Nothing here beats the whole network with narrower heads: at 96x128 it saves 45 % of the MACs" in answer
    assert "points more than the whole network on smaller images or with narrower heads at the same MACs" in answer


def test_a_body_that_was_searched_on_another_task_is_of_route_b(runs: Path) -> None:
    study = write_study(runs / "search/shapes_cls/b", task="shapes_cls")
    trial = Trial(90, arch(40).to_dict(), {"score": 0.5, "macs": 1e8})
    front = read_front(study)
    replace(front, trials=(*front.trials, trial)).write(study)
    write_net(runs, "body", {**trial.arch, "resolution": 1000, "min_size": 96}, 0.45, 150e6)
    assert {one.name: one.origin for one in choice_of(runs).candidates}["body"] == "route B"


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (
            0.30,
            "Nothing here beats the whole network at 96x128: no cheaper net comes within 1 point of it. 1 net "
            "costs less than the whole network at 64x96",
        ),
        (
            0.45,
            "At a lower budget, found scores 3.0 points more than the whole network on smaller images at the same MACs",
        ),
    ],
)
def test_where_the_whole_network_is_best_that_is_said(runs: Path, score: float, sentence: str) -> None:
    result = read_result(runs / TASK / "found")
    assert result is not None
    replace(result, score=score).write(runs / TASK / "found")
    choice = choice_of(runs)
    assert choice.pick.name == "whole"
    assert sentence in answer_text(choice)


def test_without_the_whole_network_the_answer_asks_for_it(tmp_path: Path) -> None:
    write_net(tmp_path, "one", arch(1).to_dict(), 0.5, 1e8)
    assert "The whole network was not trained on this dataset" in answer_text(choice_of(tmp_path))


def test_a_costlier_and_better_net_is_said_to_cost_more(runs: Path) -> None:
    write_net(runs, "large", arch(61).to_dict(), 0.6, 300e6)
    answer = answer_text(choice_of(runs))
    assert "It costs 50 % more MACs and 50 % more latency at +10.0 points" in answer


def test_a_search_without_trained_nets_says_what_to_train(tmp_path: Path) -> None:
    study = write_study(tmp_path / "search/shapes_det/a")
    write_net(tmp_path / "elsewhere", "other", WHOLE, 0.5, 1e8)
    report, _ = make_report(find_runs([str(tmp_path)])[0])
    assert report.advice == ()
    shutil.rmtree(tmp_path / "elsewhere")
    page = page_of(tmp_path).read_text()
    (advice,) = make_report(find_runs([str(tmp_path)])[0])[0].advice
    assert advice.title == f"shapes_det on shapes_coco: train trial {read_front(study).picked} of a"
    assert advice.command == (
        f"python -m nas_transfer stage=finetune task=shapes_det arch={study}/archs/picked.yaml "
        "data.root=data/shapes_coco"
    )
    assert advice.command in page


def test_latencies_of_a_search_count_where_nothing_was_exported(runs: Path) -> None:
    shutil.rmtree(runs / "export")
    assert choice_of(runs).engine is None
    study = runs / "search/shapes_det/a"
    front = read_front(study)
    timed = [replace(trial, values={**trial.values, "latency_ms": 3.0}) for trial in front.trials]
    replace(front, trials=tuple(timed)).write(study)
    choice = choice_of(runs)
    assert choice.engine == "measured in the search"
    assert {one.name: choice.cost(one, "latency_ms") for one in choice.candidates}["whole"] is None


def test_three_nets_of_one_arch_and_nets_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    for name in ("again", "whole-2"):
        write_net(runs, name, WHOLE, 0.48, 200e6)
    other = runs / "other"
    write_net(other, "found", arch(60).to_dict(), 0.47, 120e6)
    names = [one.name for one in choice_of(runs).candidates]
    assert len(set(names)) == len(names) == 7
    assert {"other/finetune/shapes_det/found", "whole", "again", "whole-2"} <= set(names)


def test_the_reach_of_the_space_stands_beside_that_of_the_front(runs: Path) -> None:
    study = runs / "search/shapes_det/a"
    assert "The front of the search reaches from " in range_text(choice_of(runs))
    result = read_result(study)
    assert result is not None
    assert result.search is not None
    replace(result, search=replace(result.search, attainable={"macs": (1e7, 2.5e8)})).write(study)
    choice = choice_of(runs)
    assert choice.attainable == (1e7, 2.5e8)
    low, high = choice.front
    text = f"The space reaches from 10.000 to 250.000 M MACs, and the front from {low / 1e6:.3f} to {high / 1e6:.3f} M."
    assert range_text(choice) == text


def analysis() -> Analysis:
    steps = tuple(number / 10 for number in range(11))
    return Analysis(
        images=5,
        counted="objects",
        classes_are="class",
        classes=(ClassScores("cat", 7, {"map": 0.123456, "map_50": 0.5}), ClassScores("<i>dog", 0, {})),
        matched="box IoU of at least 0.5",
        precision_recall=PrecisionRecall(steps, (steps[::-1], ()), steps[::-1]),
        threshold=ThresholdCurve(steps, steps, steps[::-1], (0.5,) * 11, 0.4),
        confusion=ConfusionMatrix(("cat", "<i>dog", "background"), ((4, 1, 2), (0, 0, 0), (3, 0, 0))),
        worst=(ImageScore(3, "val/<b>.jpg", 0.25, "3 of 4 missed"),),
        worst_by="F1",
    )


def page_of(runs: Path) -> Path:
    folder = runs / "report/own"
    folder.mkdir(parents=True, exist_ok=True)
    return write_report(folder, *make_report(*find_runs([str(runs)], folder)))[0]


def test_the_page_and_the_markdown_open_with_the_answer_and_carry_the_analysis(runs: Path) -> None:
    analysis().write(runs / TASK / "found")
    page = page_of(runs)
    markdown = (page.parent / "report.md").read_text()
    assert markdown.index("take found") < markdown.index("What found is good at") < markdown.index("## Fine-tuned nets")
    assert "| cat | 7 | 12.35 | 50.00 |" in markdown
    assert "Recommended threshold of the score: 0.40" in markdown
    text = page.read_text()
    assert text.index("take found") < text.index("What found is good at") < text.index("Fine-tuned nets")
    assert "val/&lt;b&gt;.jpg" in text
    assert "<i>dog" not in text
    assert "3 objects (30" not in text
    assert "background taken for cat: 3 objects (42.9 %)" in text  # of the predicted cats
    assert "cat taken for background: 2 objects (28.6 %)" in text  # of the annotated cats


def test_an_evaluation_says_what_a_net_is_good_at_that_does_not_say_it(runs: Path) -> None:
    found = Ancestor("found/weights.pt", "d" * 64, "nas_transfer/3", config_sha256="found")
    result = read_result(runs / TASK / "found")
    assert result is not None
    write_run(runs / "evaluate/shapes_det/e", "evaluate", "shapes_det", provenance=(found,), arch=result.arch)
    analysis().write(runs / "evaluate/shapes_det/e")
    assert "What found is good at" in page_of(runs).read_text()


def test_commands_that_ended_before_any_work_are_no_runs(runs: Path) -> None:
    report, _ = make_report(find_runs([str(runs)])[0])
    typo = write_run(runs / TASK / "typo", "finetune", "shapes_det", finished=False)
    shutil.rmtree(typo / "logs")
    again, _ = make_report(find_runs([str(runs)])[0])
    assert again.summary == f"{report.summary.removesuffix('.')}; commands that ended before any work: 1."
    assert (again.problems, len(again.runs)) == (report.problems, len(report.runs))
    assert again.nothing is not None
    assert again.nothing.rows[0][0] == str(typo)


def test_a_run_that_has_just_begun_is_not_taken_for_a_mistake(runs: Path) -> None:
    typo = write_run(runs / TASK / "typo", "finetune", "shapes_det", finished=False)
    shutil.rmtree(typo / "logs")
    code = (
        "import sys, pathlib; from nas_transfer.runs.lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(typo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    report, _ = make_report(find_runs([str(runs)])[0])
    other.communicate()
    assert report.nothing is None
    assert report.problems is not None
    assert (str(typo), "running now") in report.problems.rows
    after, _ = make_report(find_runs([str(runs)])[0])
    assert after.nothing is not None


SLIDE = """
    const [frame] = document.querySelectorAll('iframe'), page = frame.contentDocument;
    const choice = page.querySelector('.choice'), slider = choice.querySelector('input[type=range]');
    const said = () => choice.querySelector('.chosen').textContent;
    const fire = (one, name) => one.dispatchEvent(new frame.contentWindow.Event(name));
    const at = value => { slider.value = value; fire(slider, 'input'); return said(); };
    const view = choice.querySelector('.axis-view:not([hidden])');
    const seen = {first: said(), shown: view.dataset.axis};
    const marks = () => [...view.querySelectorAll('.wide .chosen-mark title')].map(one => one.textContent);
    seen.ms = [at(19.9), marks(), choice.querySelector('.budget').textContent];
    seen.last = at(99);
    const macs = choice.querySelector('input[value=macs]');
    macs.checked = true;
    fire(macs, 'change');
    seen.macs = [110e6, 60e6, 150e6].map(at);
    seen.row = choice.querySelector('.chosen-row').textContent;
    seen.hidden = [...choice.querySelectorAll('.axis-view')].filter(one => one.hidden).map(one => one.dataset.axis);
    const rows = [...page.querySelector('.strengths table').rows];
    seen.rows = rows.map(row => [...row.cells].map(cell => cell.textContent));
    seen.title = page.querySelector('.choice h2').textContent;
    seen.legend = choice.querySelector('.wide .legend').textContent;
    const heads = [...page.querySelectorAll('.choice th, .strengths th')];
    seen.head = Math.max(...heads.map(one => one.getBoundingClientRect().right));
    document.title = JSON.stringify(seen);
"""


@needs_browser
def test_the_slider_names_the_best_net_under_a_budget_in_either_cost(runs: Path, tmp_path: Path) -> None:
    analysis().write(runs / TASK / "found")
    seen = in_a_browser(page_of(runs), 1280, tmp_path, SLIDE)
    assert seen["title"] == "shapes_det on shapes_coco: take found"
    assert seen["shown"] == "latency_ms"
    assert seen["first"].startswith("found (route A): 49.50 % mAP")
    assert seen["last"].startswith("whole (whole network): 50.00 % mAP")
    assert seen["ms"][0].startswith("found (route A)")
    assert "saves 40 % of the MACs and 40 % of the latency at -0.5 points" in seen["ms"][0]
    assert seen["ms"][1] == [seen["ms"][0]]
    assert seen["ms"][2] == "19.9 ms"
    assert [text.split()[0] for text in seen["macs"]] == ["smaller", "cheap", "found"]
    assert "found" in seen["row"]
    assert seen["hidden"] == ["latency_ms"]
    for origin in ("whole network, smaller input", "whole network", "route A", "recommended"):
        assert origin in seen["legend"]
    assert seen["head"] <= 1280


@needs_browser
def test_the_table_of_classes_equals_the_json(runs: Path, tmp_path: Path) -> None:
    analysis().write(runs / TASK / "found")
    stored = json.loads((runs / TASK / "found/analysis.json").read_text())
    heads, *rows = in_a_browser(page_of(runs), 1280, tmp_path, SLIDE)["rows"]
    assert heads == ["class", "objects", "mAP (%)", "mAP50 (%)"]
    assert len(rows) == len(stored["classes"])
    for row, one in zip(rows, stored["classes"], strict=True):
        scores = [f"{100 * one['scores'][key]:.2f}" if key in one["scores"] else "—" for key in ("map", "map_50")]
        assert row == [one["name"], str(one["count"]), *scores]


def test_the_data_of_the_slider_is_that_of_the_results(runs: Path) -> None:
    (data,) = re.findall(r'data-nets="([^"]*)"', page_of(runs).read_text())
    nets = {net["name"]: net for net in json.loads(unescape(data))}
    for name in ("whole", "smaller", "found", "cheap"):
        result = read_result(runs / TASK / name)
        assert result is not None
        assert nets[name]["score"] == result.score
        assert nets[name]["costs"] == {
            "macs": result.costs.macs["total"],
            "latency_ms": result.costs.macs["total"] / 1e7,
        }
