"""Where nets come from."""

import json
from pathlib import Path

import torch

from nas_transfer.report.collect import read_run
from nas_transfer.report.origins import origin_table
from nas_transfer.report.studies import read_study
from nas_transfer.report.tables import kind_of
from tests.report.run_folders import arch, write_run, write_study


def test_a_nets_study_start_and_what_both_cost_are_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "search/shapes_det/a")
    front = json.loads((folder / "front.json").read_text())["front"]
    base = write_run(tmp_path / "pretrain/shapes_cls/base", "pretrain", "shapes_cls", arch=None, seconds=100.0)
    found = write_run(tmp_path / "finetune/small_det/found", "finetune", "small_det", arch=front[0]["arch"])
    given = write_run(tmp_path / "finetune/small_det/given", "finetune", "small_det", arch=arch(99).to_dict())
    entry = {"file": "base/weights.pt", "sha256": "e", "config_sha256": "base"}
    torch.save({"provenance": [entry]}, found / "weights.pt")
    torch.save({"provenance": [{"file": "/site-packages/public.pth", "sha256": "f"}]}, given / "weights.pt")
    runs = [read_run(path) for path in (folder, base, found, given)]
    study = read_study(runs[0])
    assert study is not None
    first, second = origin_table(kind_of(runs[2]), runs[2:], [study], runs).rows
    trial = f"{folder} trial {front[0]['trial']}, searched on shapes_det (shapes_coco)"
    assert first == (str(found), "41.24", "123.456", trial, str(base), "800", "125")
    assert second == (str(given), "41.24", "123.456", "given", "public.pth", "0", "0")
