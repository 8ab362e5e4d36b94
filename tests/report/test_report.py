"""The report of made-up runs: complete, true to their files, self-contained, and never stopped by a broken one."""

import base64
import csv
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nas_transfer.errors import ConfigError
from nas_transfer.report.collect import find_runs
from nas_transfer.report.content import make_report
from nas_transfer.report.page import write_report
from nas_transfer.report.plots import axis_of
from nas_transfer.report.tables import Table
from nas_transfer.runs import (
    Ancestor,
    PredictorQuality,
    RankQuality,
    Repeats,
    Trial,
    Validation,
    read_front,
)
from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS
from tests.report.run_folders import arch, costs, write, write_run, write_study


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A supernet, its study, nets of three kinds, one run that is unfinished, and one that is broken."""
    write_run(tmp_path / "finetune/shapes_det/net", "finetune", "shapes_det")
    write_run(tmp_path / "finetune/shapes_det/super", "finetune", "shapes_det", arch=None, passes_per_image=4)
    write_run(tmp_path / "finetune/shapes_pose/net", "finetune", "shapes_pose", score=0.6608, gpu_hours=0.0, devices=2)
    write_run(tmp_path / "finetune/shapes_seg/net", "finetune", "shapes_seg", score=0.6945, score_key="miou")
    write_run(tmp_path / "finetune/shapes_det/half", "finetune", "shapes_det", finished=False)
    write(write_run(tmp_path / "finetune/shapes_det/broken", "finetune", "shapes_det") / "result.json", '{"stage": 1')
    write_study(tmp_path / "search/shapes_det/a")
    return tmp_path


def made(*places: Path) -> tuple[str, str, list[dict[str, str]]]:
    """Page, Markdown, and rows of the CSV."""
    folder = places[0] / "report" / "own"
    folder.mkdir(parents=True, exist_ok=True)
    page, markdown, table = write_report(folder, *make_report(*find_runs([str(place) for place in places], folder)))
    with table.open(newline="") as stream:
        return page.read_text(), markdown.read_text(), list(csv.DictReader(stream))


class Balanced(HTMLParser):
    """Fails where an element is closed that is not open; collects the titles of points."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


def test_the_tables_have_the_documents_columns_and_the_results_figures(runs: Path) -> None:
    page, markdown, rows = made(runs)
    assert (
        "| Dataset | Model | config | Lr schd | Flops(M) | mAP (%) | Consuming time | trained model | log |" in markdown
    )
    assert "| Dataset | Model | config | Input Size | Flops(M) | AP (%) | Consuming time |" in markdown
    assert "| Dataset | Model | config | Crop Size | Lr schd | Flops(M) | mIoU (%) | Consuming time |" in markdown
    figures = ("123.456", "41.24", "66.08", "69.45", "8 GPUs x 0.5 days", "2 CPU processes x 0.5 days", "6 steps of 64")
    for text in figures:
        assert text in page
        assert text in markdown
    assert "| 92.592 |" in markdown  # a pose net's FLOPs are its body's, as in the document
    net = next(row for row in rows if row["run"] == str(runs / "finetune/shapes_det/net"))
    assert (net["score"], net["macs"], net["devices"], net["seed"]) == ("0.41237", "123456000", "8", "3")
    assert {row["run"] for row in rows}.isdisjoint(
        {str(runs / f"finetune/shapes_det/{name}") for name in ("half", "broken")}
    )


def test_tasks_that_are_not_built_in_have_a_table_each_with_their_own_score(tmp_path: Path) -> None:
    for task, key in (("grades", "closeness"), ("counts", "exact")):
        for name in ("one", "two"):
            write_run(tmp_path / f"finetune/{task}/{name}", "finetune", task, score_key=key)
    _, markdown, rows = made(tmp_path)
    counts, grades = re.findall(r"### (?:counts|grades)\n(.*?)(?=\n##)", markdown, re.S)
    assert "| exact (%) |" in counts
    assert "| closeness (%) |" in grades
    for table in (counts, grades):
        assert table.count("| 123.456 | 41.24 |") == 2
    assert {row["kind"] for row in rows} == {"counts", "grades"}


def test_the_page_needs_nothing_else_and_escapes_what_runs_say(runs: Path) -> None:
    page, _, _ = made(runs)
    assert not re.search(r"https?://|\bsrc=|url\(|@import|<link", page)
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)  # the page's own, which its policy names
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "name=&lt;b&gt;&amp;" in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    picked = next(title for title in parser.titles if "picked" in title)
    assert "MACs (M) at 96x128" in picked
    assert f"tiny {arch(int(picked.split()[1].strip(','))).short_id()}" in picked


def test_unfinished_and_broken_runs_are_listed_with_what_is_missing(runs: Path) -> None:
    (runs / "finetune/shapes_pose/net/run.json").unlink()
    write_run(runs / "predict/shapes_det/photos", "predict", "shapes_det", finished=False)
    _, markdown, _ = made(runs)
    problems = markdown.partition("## Unfinished")[2].partition("\n## ")[0]
    assert (
        f"| {runs}/finetune/shapes_det/half | unfinished: result.json is missing; the log ends at step 20 of 50 |"
        in problems
    )
    assert re.search(r"det/broken \| result.json cannot be read", problems)
    assert re.search(r"pose/net \| run.json is missing", problems)
    assert "photos" in markdown
    assert "photos" not in problems


@pytest.mark.parametrize(
    "name",
    [
        "result.json",
        "run.json",
        "front.json",
        "trust.json",
        "warm_start.spent.json",
        "trials/1.json",
        "weights.pt",
        "analysis.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": 1, "config": 3, "trials": [1], "objectives": {"score": "maximize"}}',
        '{"format": 1, "config": {"data.batch_size": 0}, "trials": [1], "short": [null], "long": ["a"], '
        '"quality": {"tau": 0, "rho": 0, "low": 0, "high": 0}}',
        '{"format": 1, "images": 1, "counted": "a", "classes_are": "b", "classes": [], "threshold": {"thresholds": [], '
        '"precision": [], "recall": [], "f1": [], "recommended": 0}}',
    ],
)
def test_no_file_stops_the_report(tmp_path: Path, name: str, content: str) -> None:
    folder = write_study(tmp_path / "runs/proxy/shapes_det/a", "proxy")
    write(folder / name, content)
    _, markdown, _ = made(tmp_path)
    assert str(folder) in markdown


def test_costs_are_summed_by_stage_and_what_was_inherited_stands_apart(runs: Path) -> None:
    public = Ancestor("lite0.pth", "f" * 64, "efficientnet_lite", "Apache-2.0")
    own = Ancestor("super/weights.pt", "e" * 64, "nas_transfer/2", stage="finetune", config_sha256="super")
    write_run(runs / "finetune/shapes_det/net", "finetune", "shapes_det", provenance=(public, own))
    _, markdown, _ = made(runs)
    costs_by_stage = markdown.partition("## Cost by stage")[2]
    assert "| shapes_det | finetune, supernets | 1 | 400 | 1600 | 43200 | 96 |" in costs_by_stage
    assert "| shapes_det | finetune, nets | 1 | 400 | 400 | 43200 | 96 |" in costs_by_stage
    inherited = markdown.partition("## Inherited")[2]
    assert "| lite0.pth | public weights | Apache-2.0 | not counted above |" in inherited
    assert f"counted above: {runs}/finetune/shapes_det/super" in inherited


def test_a_study_says_what_its_nets_scored_when_they_were_trained_alone(tmp_path: Path) -> None:
    study = write_study(tmp_path / "search/shapes_det/a")
    front = read_front(study)
    archs = {trial.number: trial.arch for trial in front.trials}
    picked = front.picked
    assert picked is not None
    other = next(trial for trial in archs if trial != picked)
    nets = tmp_path / "finetune/shapes_det"
    write_run(nets / "picked", "finetune", "shapes_det", arch=archs[picked], score=0.431)
    write_run(nets / "again", "finetune", "shapes_det", arch=archs[picked], score=0.425)
    write_run(nets / "other", "finetune", "shapes_det", arch=archs[other], score=0.3)
    write_run(nets / "stranger", "finetune", "shapes_det", arch=arch(99).to_dict(), score=0.99)
    elsewhere = {"data.root": "data/elsewhere"}
    write_run(nets / "elsewhere", "finetune", "shapes_det", elsewhere, arch=archs[picked], score=0.98)
    write_run(tmp_path / "finetune/small_det/net", "finetune", "small_det", arch=archs[picked], score=0.97)
    facts = made(tmp_path)[1].partition("## Studies")[2].partition("\n| trial")[0].splitlines()
    alone = [fact for fact in facts if "trained alone" in fact]
    assert alone == [
        f"- picked, trained alone: 42.50 % mAP on the validation split ({nets}/again); "
        f"43.10 % mAP on the validation split ({nets}/picked)",
        f"- trial {other}, trained alone: 30.00 % mAP on the validation split ({nets}/other)",
    ]


@pytest.mark.parametrize(
    ("whole", "label", "sentence"),
    [
        ([(50e6, 0.02), (100e6, 0.05), (180e6, 0.04)], "whole network, resized",
         "compared with resizing the whole network, the front has up to "),
        ([(40e6, 0.95), (30e6, 0.9)], "whole network, resized",
         "the search found nothing better than resizing the whole network in score and macs (front.json)"),
        ([(40e6, 0.95)], "whole network", "the search found nothing better than the whole network in score and macs"),
    ],
)  # fmt: skip
def test_the_front_stands_beside_the_whole_network(
    runs: Path, whole: list[tuple[float, float]], label: str, sentence: str
) -> None:
    study = runs / "search/shapes_det/a"
    front = read_front(study)
    before = made(runs)[0].partition('id="studies"')[2]
    resized = [Trial(90 + n, {}, {"score": score, "macs": macs}) for n, (macs, score) in enumerate(whole)]
    replace(front, resized=tuple(resized)).write(study)
    page, markdown, _ = made(runs)
    assert f"- whole network: {sentence}" in markdown
    figure = page.partition("map (%) against MACs")[2].partition("</figure>")[0]
    assert f"{label}</" in figure
    assert figure.count('<g class="mark s0 square">') == len(whole)
    # A size that costs more and scores less than another is no part of the line.
    curve = re.findall(r'class="line s0" d="(M[^"]+)"', figure)
    assert [path.count("L") for path in curve] == [1] * (len(whole) > 1)
    assert "the whole network" in figure
    assert "whole network" not in before
    replace(front, resized=tuple(resized[:1]), narrowed=tuple(resized[1:])).write(study)
    figure = made(runs)[0].partition("map (%) against MACs")[2].partition("</figure>")[0]
    assert ("whole network, narrower heads</" in figure) == (len(whole) > 1)
    assert ("the whole network with a narrower head" in figure) == (len(whole) > 1)
    assert figure.count('<g class="mark s0 square">') == len(whole)


def test_trust_repeats_predictor_and_pictures_are_shown(runs: Path) -> None:
    study = runs / "search/shapes_det/a"
    Validation(
        20, 80, (1, 2, 3), (0.1, 0.2, 0.3), (0.2, 0.4, 0.3), RankQuality(0.52, 0.61, -0.1, 0.9, 3), 240, 9.0
    ).write(study)
    front = read_front(study)
    repeated = replace(front.trials[0], repeats=Repeats((0.5, 0.7), 0.6, 0.1414), indistinguishable_from=(7,))
    predictor = PredictorQuality("ridge", RankQuality(0.44, 0.5, 0.1, 0.7, 30))
    replace(front, trials=(repeated, *front.trials[1:]), predictor=predictor).write(study)
    (runs / "finetune/shapes_det/net/overlays").mkdir()
    Image.new("RGB", (900, 300)).save(runs / "finetune/shapes_det/net/overlays/1.png")
    (runs / "finetune/shapes_seg/net/sample_predictions").mkdir()
    Image.new("RGB", (664, 332)).save(runs / "finetune/shapes_seg/net/sample_predictions/000001.jpg")
    write(runs / "finetune/shapes_pose/net/sample_predictions/000001.jpg", "torn")
    page, markdown, _ = made(runs)
    assert "Kendall's tau 0.52 (95 % interval -0.10 to 0.90)" in markdown
    assert "no better than chance" in markdown
    assert "ridge of the first predicted objective, cross-validated in its last batch: Kendall's tau 0.44" in markdown
    assert "60.00 ± 14.14 (2 seeds) | trial 7 |" in markdown
    nets, own = page.partition('id="nets"')[2].split('<section id="runs">')
    for part, width, height in ((nets, 664, 332), (own, 360, 180), (own, 360, 120)):  # the best net's is larger
        assert f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,' in part
    assert page.count("data:image/jpeg;base64,") == 4
    assert not re.search(r"\bsrc=", page)


def test_routes_are_compared_as_far_as_their_nets_are_finished(tmp_path: Path) -> None:
    root = tmp_path / "compare-shapes_det"
    for route, place, score in (("A", 0, 0.5), ("A", 1, 0.4), ("C", 0, 0.6)):
        folder = root / f"finetune/shapes_det/{route}-0-{place}"
        write_run(folder, "finetune", "shapes_det", score=score, costs=costs(1e8 / (1 + place)))
    write_run(root / "search/shapes_det/A-0", "search", "shapes_det", images_seen=1600)
    write_run(root / "proxy/shapes_det/C-0", "proxy", "shapes_det", images_seen=160)
    assert "| C | 160 | 160 | — | 43200 | 60.0 |" in made(tmp_path)[1]
    (root / "finetune/shapes_det/C-0-0/result.json").unlink()
    _, markdown, _ = made(tmp_path)
    assert "| A | 1600 | 1600 | — | 43200 | 50.0 |" in markdown
    assert "| C |" not in markdown
    assert "compared by their finished nets only" in markdown


def test_places_are_folders_and_patterns_and_none_with_a_run_is_an_error(runs: Path) -> None:
    found, without = find_runs([str(runs / "finetune/*/net"), str(runs / "search"), str(runs / "nothing")])
    assert [str(path.relative_to(runs)) for path in found] == [
        "finetune/shapes_det/net", "finetune/shapes_pose/net", "finetune/shapes_seg/net", "search/shapes_det/a",
    ]  # fmt: skip
    assert without == [str(runs / "nothing")]
    with pytest.raises(ConfigError, match=r"no run folder in .*nothing: "):
        find_runs([str(runs / "nothing")])


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [0.1, 0.9], [-3, 4], [1e6, 1.6e8], [1e15, 1e15 + 1]]
)
def test_an_axis_holds_its_values_and_has_ticks(values: list[float]) -> None:
    axis = axis_of(values, 0, 300, 5)
    assert all(0 <= axis.at(value) <= 300 for value in values)
    assert 2 <= len(axis.ticks()) <= 12


@pytest.mark.slow
def test_the_command_makes_the_report_anew_without_torch_and_names_what_holds_no_run(runs: Path) -> None:
    code = (
        "import sys; from nas_transfer.cli import main\n"
        "sys.argv = ['nas_transfer', 'stage=report', *sys.argv[1:]]\n"
        "main(); sys.exit(3 if 'torch' in sys.modules else 0)"
    )

    def report(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, f"runs={runs}", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    first = report()
    assert first.returncode == 0, first.stderr
    write_run(runs / "finetune/shapes_det/later", "finetune", "shapes_det", score=0.77)
    assert report().stdout.splitlines()[:3] == first.stdout.splitlines()[:3]
    (page,) = runs.glob("report/report-*/report.html")
    assert "77.00" in page.read_text()
    assert "Runs: 7, finished: 5" in first.stdout
    refused = report("runs_in=[nowhere/*]")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no run folder in nowhere/*: ")


@pytest.mark.parametrize(
    ("letters", "heading", "span"), [(14, 5, 2), (15, 5, 3), (21, 5, 3), (22, 5, 6), (80, 5, 6), (3, 15, 3)]
)
def test_a_cell_of_a_card_is_as_wide_as_its_columns_longest_text(letters: int, heading: int, span: int) -> None:
    table = Table("", ("a", "h" * heading), (("1", "x"), ("2", "x" * letters)))
    assert table.spans == (2, span)


BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
]  # fmt: skip
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements as a browser has them after loading, and what the console says."""
    command = [*BROWSER, f"--user-data-dir={profile}", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_a_browser_shows_the_page_without_a_word_and_lets_it_ask_no_host(runs: Path, tmp_path: Path) -> None:
    (runs / "finetune/shapes_det/net/sample_predictions").mkdir()
    Image.new("RGB", (664, 332)).save(runs / "finetune/shapes_det/net/sample_predictions/000001.jpg")
    made(runs)
    page = runs / "report/own/report.html"
    shown, console = opened(page, tmp_path / "browser")
    assert "Fine-tuned nets" in shown
    assert "data:image/jpeg" in shown
    assert console == []
    page.write_text(page.read_text().replace("</body>", '<img src="http://127.0.0.1:9/picture.png"></body>'))
    _, console = opened(page, tmp_path / "browser")
    assert len(console) == 1
    assert "Content Security Policy" in console[0]


WATCH = """
    const [frame] = document.querySelectorAll('iframe'), page = frame.contentDocument;
    for (const one of page.querySelectorAll('details')) one.open = true;
    const right = one => Math.ceil(one.getBoundingClientRect().right);
    const scrolled = [...page.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth);
    const all = [...page.querySelectorAll('body *')].filter(one => !one.closest('thead'));
    const cells = [...page.querySelectorAll('#nets td')].filter(one => /mAP|Flops/.test(one.dataset.label));
    const labels = cells.map(one => frame.contentWindow.getComputedStyle(one, '::before').content);
    document.title = JSON.stringify({
        reach: Math.max(...all.map(right)), scrolled: scrolled.length, cells: Math.max(...cells.map(right)),
        labels: [...new Set(labels)], head: page.querySelector('thead').getBoundingClientRect().height,
    });
"""


def in_a_browser(page: Path, width: int, folder: Path, script: str = WATCH) -> dict[str, Any]:
    """What a script sees of a page in a frame this wide; a window itself is at least 500 wide."""
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(page.read_text())}">'
    watched = folder / f"{width}.html"
    watched.write_text(
        f"<body style='margin: 0'>{frame}</iframe><script>window.onload = () => {{ {script} }}</script></body>"
    )
    shown, console = opened(watched, folder / "browser")
    assert console == []
    title = re.search(r"<title>({.*?})</title>", shown)
    assert title is not None
    found: dict[str, Any] = json.loads(html.unescape(title.group(1)))
    return found


@needs_browser
def test_a_phone_shows_all_of_every_table_without_scrolling_sideways(runs: Path, tmp_path: Path) -> None:
    made(runs)
    phone = in_a_browser(runs / "report/own/report.html", 390, tmp_path)
    assert phone["reach"] <= 390
    assert phone["cells"] <= 390
    assert phone["scrolled"] == 0
    assert {'"Flops(M)"', '"mAP (%)"'} <= set(phone["labels"])
    assert phone["head"] <= 1
    screen = in_a_browser(runs / "report/own/report.html", 1280, tmp_path)
    assert screen["labels"] == ["none"]
    assert screen["head"] > 10


@pytest.mark.parametrize("accumulate", [0, "two", [1], None])
def test_a_schedule_that_cannot_be_told_is_left_out(runs: Path, accumulate: object) -> None:
    settings = {"data.batch_size": 8, "task.recipe.accumulate": accumulate}
    write_run(runs / "finetune/shapes_det/odd", "finetune", "shapes_det", settings)
    _, markdown, _ = made(runs)
    (row,) = (line for line in markdown.splitlines() if line.endswith("finetune/shapes_det/odd |"))
    assert "steps of" not in row


def test_an_unfinished_supernet_is_not_said_to_be_counted(runs: Path) -> None:
    half = Ancestor("super/weights.pt", "e" * 64, "nas_transfer/2", stage="finetune", config_sha256="half")
    write_run(runs / "finetune/shapes_det/net", "finetune", "shapes_det", provenance=(half,))
    inherited = made(runs)[1].partition("## Inherited")[2]
    assert "| weights.pt | finetune |" in inherited
    assert "not counted above" in inherited


def test_a_curve_of_scores_is_that_of_the_tasks_own_metric(runs: Path) -> None:
    half = write_run(runs / "finetune/shapes_seg/half", "finetune", "shapes_seg", finished=False)
    write(half / "logs/version_0/metrics.csv", "step,val/iou/road,val/miou\n10,0.9,0.25\n20,0.9,0.5\n")
    section = made(runs)[0].partition("shapes_seg: half")[2].partition("</details>")[0]
    assert "miou (%)" in section
    assert "iou/road" not in section


def test_an_unfinished_training_shows_all_its_metrics(runs: Path) -> None:
    half = write_run(runs / "finetune/shapes_det/half", "finetune", "shapes_det", finished=False)
    write(half / "logs/version_0/metrics.csv", "step,val/map,val/map_50\n10,0.25,0.5\n20,0.5,0.75\n")
    section = made(runs)[0].partition("shapes_det: half")[2].partition("</details>")[0]
    assert "Validation metrics" in section
    assert re.findall(r"</i>(\S+)</li>", section) == ["map", "map_50"]


def test_the_csv_names_an_arch_where_it_was_trained_alone(runs: Path) -> None:
    write_run(runs / "export/shapes_det/net", "export", "shapes_det")
    archs = {row["stage"]: row["arch"] for row in made(runs)[2]}
    assert (archs["finetune"], archs["export"], archs["search"]) == ("max", "", "")
