"""Every record is read as it was written, and a file that does not hold it is refused in one sentence."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from nas_transfer.errors import RunError
from nas_transfer.runs import (
    BACKGROUND,
    Analysis,
    Ancestor,
    Check,
    ChoiceDamage,
    ClassScores,
    ConfusionMatrix,
    Costs,
    DamageTable,
    Evaluation,
    ExportSummary,
    FileLatency,
    Finding,
    Front,
    ImageScore,
    Manifest,
    Outcome,
    PartSummary,
    PrecisionRecall,
    PredictorQuality,
    RankQuality,
    Repeats,
    Result,
    SearchSummary,
    Spent,
    TaskKind,
    ThresholdCurve,
    TrainingEstimate,
    TrainingSummary,
    Trial,
    Usage,
    Validation,
    files,
    read_analysis,
    read_check,
    read_damage,
    read_front,
    read_job,
    read_manifest,
    read_outcome,
    read_result,
    read_spent,
    read_started,
    read_validation,
    write_job,
    write_started,
)
from nas_transfer.runs.reading import START_ANEW, WAY_OUT, parse

ARCH = {"space": "tiny", "resolution": 96, "depth": [1, 2]}
COSTS = Costs({"body": 3, "total": 3}, {"body": 2, "total": 2}, 4, (96, 128), 17, "keypoints", {"torch": 1.5})
QUALITY = RankQuality(0.5, 0.6, -0.1, 0.9, 3)
VALIDATION = Validation(20, 80, (1, 2), (0.1, 0.2), (0.3, 0.4), QUALITY, 800, 12.5)
PREDICTOR = PredictorQuality("ridge", QUALITY)
TRIAL = Trial(3, ARCH, {"score": 0.5, "macs": 3.0}, {"map": 0.5}, COSTS, "archs/trial_3.yaml",
              Repeats((0.4, 0.6), 0.5, 0.1), (1, 2))  # fmt: skip
FRONT = Front({"score": "maximize", "macs": "minimize"}, (TRIAL,), 3, PREDICTOR,
              (replace(TRIAL, file="", costs=None), replace(TRIAL, number=4)))  # fmt: skip
SEARCH = SearchSummary(9, 1, 2, 1, 0.25, {"score": 1.0, "macs": 5.0}, 3, FRONT.objectives,
                       {"trials": Usage(80, 2.0, 1.0)}, VALIDATION, {"macs": (1.0, 5.0)})  # fmt: skip
EXPORT = ExportSummary({"model.onnx": 1e-6}, 0.5, {"onnxruntime": 2.5}, (96, 128), 2,
                       {"model.onnx": FileLatency(2.5, (96, 128))})  # fmt: skip
ANCESTOR = Ancestor("a.pth", "f" * 64, "efficientnet_lite", "Apache-2.0", "finetune", "shapes_det", "e" * 64)
KIND = TaskKind("pose", "Pose estimation", "ap", "keypoints", "topdown", "AP", "body", None, False)
RESULT = Result(
    "export", "shapes_pose", ARCH, "ap", 0.5, {"ap": 0.5}, COSTS, 2.5, 2, 0.5, 80, 4, "abc", 3, "e" * 64, (ANCESTOR,),
    SEARCH, EXPORT, KIND, {"torch": "2"}, "abc123", training_macs=12,
    training=TrainingSummary(3, 4, "ap", 2, 0.5, "last"),
)  # fmt: skip
FINDING = Finding("tiny", "train", "a.jpg", "a.jpg: a box of 2 pixels")
TRAINING = TrainingEstimate("CPU", "max", 8, 0.5, 3, 100, 2.5, 1.5, 4.5)
PARTS: dict[str, PartSummary] = {
    "train": {"images": 3, "broken": 1, "width": [1.0, 2.0, 3.0], "classes": {"cat": {"images": 1, "count": 2}}},
    "val": {"images": 0, "broken": 0},
}
DAMAGES = DamageTable("tiny", (ChoiceDamage("depth.a", 1, 0.5, 0.25, 2.0),), "f" * 64, 100, 1, 9.0, "cuda")
ANALYSIS = Analysis(
    5, "objects", "class", (ClassScores("cat", 7, {"map": 0.5}),), "box IoU of at least 0.5",
    PrecisionRecall((0.0, 1.0), ((1.0, 0.5),), (1.0, 0.5)), ThresholdCurve((0.0,), (0.5,), (1.0,), (0.75,), 0.0),
    ConfusionMatrix(("cat", BACKGROUND), ((6, 1), (3, 0))), (ImageScore(3, "a.jpg", 0.5, "1 of 2 missed"),), "F1",
)  # fmt: skip
CHECK = Check("shapes_det", "data", PARTS, {"tiny": 1}, 0, (FINDING,), 1.5, TRAINING, "")


@dataclass(frozen=True)
class Case:
    """A record, its file in a run folder, and how it is read from there."""

    record: Any
    file: str
    read: Callable[[Path], Any]


OUTCOME_FILE = files.trial_file(3)
CASES = [
    Case(RESULT, files.RESULT, read_result),
    Case(replace(RESULT, arch=None, score=None, score_key=None, search=None, export=None, kind=None, git=None),
         files.RESULT, read_result),
    Case(Manifest("e" * 64, "now", ("stage=search", "a b"), {"seed": 3, "search.limits": [1, None]}), files.RUN,
         read_manifest),
    Case(FRONT, files.FRONT, read_front),
    Case(Front({"score": "maximize"}, (Trial(0, ARCH, {"score": 0.1}),)), files.FRONT, read_front),
    Case(VALIDATION, files.VALIDATION, read_validation),
    Case(ANALYSIS, files.ANALYSIS, read_analysis),
    Case(Analysis(0, "images", "class", ()), files.ANALYSIS, read_analysis),
    Case(CHECK, files.CHECK, read_check),
    Case(replace(CHECK, training=None, not_timed="out of memory"), files.CHECK, read_check),
    Case(DAMAGES, files.DAMAGE, read_damage),
    Case(Spent(12.5, "cuda", 80, (0.1, 0.3), (1.0, 2.0), (ANCESTOR,)), files.PREPARATION, read_spent),
    Case(Outcome(3, ARCH, {"score": 0.5}, None, False, {"map": 0.5}, 2.5, 1.5, "cuda", 80), OUTCOME_FILE,
         lambda folder: read_outcome(folder / OUTCOME_FILE)),
    Case(Outcome(3, ARCH, reason="too large", left_out=True), OUTCOME_FILE,
         lambda folder: read_outcome(folder / OUTCOME_FILE)),
]  # fmt: skip
NAMES = [f"{type(case.record).__name__}{number}" for number, case in enumerate(CASES)]


def write(case: Case, folder: Path) -> Path:
    path = folder / case.file
    case.record.write(path if isinstance(case.record, Outcome) else folder)
    return path


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_record_is_read_as_it_was_written(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path)
    assert case.read(tmp_path) == case.record
    before = path.read_bytes()
    write(replace(case, record=case.read(tmp_path)), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_another_format_version_is_refused_in_one_sentence(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path)
    content = json.loads(path.read_text())
    for version in (content["format"] + 1, None):
        path.write_text(json.dumps(content | {"format": version}))
        sentence = f"{path} must have format 1, got {version}: run the stage again"
        with pytest.raises(RunError, match=f"^{re.escape(sentence)}$"):
            case.read(tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case.record, Spent)])
def test_a_record_without_a_field_that_has_no_default_is_refused(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path)
    content = json.loads(path.read_text())
    name = fields(case.record)[0].name
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=rf" is damaged \({name} is missing\): (delete|start anew)"):
        case.read(tmp_path)


def test_every_field_of_a_result_is_in_its_round_trip() -> None:
    assert all(getattr(RESULT, field.name) for field in fields(Result))
    assert RESULT.status == "finished"


def test_jobs_and_their_slurm_jobs_are_read_as_they_were_written(tmp_path: Path) -> None:
    evaluation = Evaluation(3, ARCH, OUTCOME_FILE, 40, 20, True, 1)
    job = write_job(tmp_path / files.JOBS_FOLDER / "0.json", (evaluation,))
    assert read_job(job.path) == (evaluation,)
    write_started(job.path, "12_0")
    assert read_started(tmp_path) == {job.path.with_suffix(files.STARTED_SUFFIX): "12_0"}


def test_a_run_folder_without_files_has_no_records(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert read_manifest(tmp_path) is None
    assert read_validation(tmp_path) is None
    for read in (read_front, read_check):
        with pytest.raises(RunError, match=r"\.json does not exist: is .* the folder of a finished run\?$"):
            read(tmp_path)


def test_a_front_keeps_its_predictor_when_it_is_written_again(tmp_path: Path) -> None:
    replace(FRONT, picked=None).write(tmp_path)
    replace(read_front(tmp_path), picked=3).write(tmp_path)
    assert read_front(tmp_path) == FRONT
    assert read_front(tmp_path).predictor == PREDICTOR


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Costs({"body": 1}, {"total": 1}, 1, (1, 1), 1), "macs must have a total, got body"),
        (lambda: Costs({"total": 1}, {}, 1, (1, 1), 1), "params must have a total, got none"),
        (
            lambda: Front({"score": "maximize"}, (Trial(7, ARCH, {"macs": 1.0}),)),
            "trial 7 must have a value of score, got macs",
        ),
        (lambda: replace(VALIDATION, long=(0.1,)), "got 2 trials, 2 short and 1 long scores"),
    ],
)
def test_records_whose_parts_do_not_fit_are_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def test_a_file_whose_parts_do_not_fit_is_refused_with_its_name(tmp_path: Path) -> None:
    FRONT.write(tmp_path)
    path = tmp_path / files.FRONT
    content = json.loads(path.read_text())
    del content["trials"][0]["costs"]["macs"]["total"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"front\.json is damaged \(macs must have a total, got .*name=\.\.\.$"):
        read_front(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "high"}, "score must be a number, got 'high'"),
        ({"devices": True}, "devices must be a whole number, got True"),
        ({"metrics": []}, "metrics must be a mapping, got a list"),
        ({"provenance": {}}, "provenance must be a list, got a dict"),
        ({"status": "done"}, "status must be one of 'finished', got 'done'"),
        ({"kind": {"name": "a"}}, "kind.title is missing"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    RESULT.write(tmp_path)
    path = tmp_path / files.RESULT
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=rf" is damaged \({re.escape(reason)}\): delete"):
        read_result(tmp_path)


def test_lists_of_a_fixed_length_keep_it() -> None:
    content = {"difference": {}, "score_torch": 1, "latency_ms": {}, "latency_size": [1], "threads": 1}
    with pytest.raises(ValueError, match="latency_size must have 2 values, got 1"):
        parse(ExportSummary, content)


def test_a_part_without_its_number_of_images_is_refused(tmp_path: Path) -> None:
    CHECK.write(tmp_path)
    path = tmp_path / files.CHECK
    path.write_text(path.read_text().replace('"images": 3', '"pictures": 3'))
    with pytest.raises(RunError, match=r" is damaged \(parts\.train\.images is missing\): delete"):
        read_check(tmp_path)


def test_unknown_keys_are_ignored() -> None:
    assert parse(Usage, {"images": 3, "more": 1}) == Usage(3)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"format": 1}', b"[" * 10**5, b"\0" * 4096]
)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        (files.RESULT, lambda path: read_result(path.parent)),
        (files.RUN, lambda path: read_manifest(path.parent)),
        (files.trial_file(1), read_outcome),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out(
    tmp_path: Path, name: str, read: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} ")
    assert "\n" not in sentence
    assert sentence.endswith((f": {WAY_OUT}", f": {START_ANEW}", ": run the stage again"))
