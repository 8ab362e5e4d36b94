"""Where nets come from."""

from pathlib import Path

from nas_transfer.report.collect import read_run
from nas_transfer.report.nets import kind_of, nets_of
from nas_transfer.report.origins import origin_table
from nas_transfer.report.studies import read_study
from nas_transfer.runs import Ancestor, read_front
from tests.report.run_folders import arch, write_run, write_study


def test_a_nets_study_start_and_what_both_cost_are_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "search/shapes_det/a")
    trial = read_front(folder).trials[0]
    base = write_run(tmp_path / "pretrain/shapes_cls/base", "pretrain", "shapes_cls", arch=None, seconds=100.0)
    own = Ancestor("base/weights.pt", "e", "nas_transfer/2", stage="pretrain", config_sha256="base")
    public = Ancestor("/site-packages/public.pth", "f", "efficientnet_lite", "Apache-2.0")
    searched = write_run(
        tmp_path / "finetune/small_det/searched", "finetune", "small_det", arch=trial.arch, provenance=(public, own)
    )
    given = write_run(
        tmp_path / "finetune/small_det/given", "finetune", "small_det", arch=arch(99).to_dict(), provenance=(public,)
    )
    runs = [read_run(path) for path in (folder, base, searched, given)]
    study = read_study(runs[0])
    assert study is not None
    nets = nets_of(runs)
    first, second = origin_table(kind_of(nets[0].result), nets, [study], runs).rows
    source = f"{folder} trial {trial.number}, searched on shapes_det (shapes_coco)"
    assert first == (str(searched), "41.24", "123.456", source, str(base), "800", "125")
    assert second == (str(given), "41.24", "123.456", "given", "public.pth", "0", "0")
