"""All finished runs as CSV, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from nas_transfer.arch import short_id
from nas_transfer.report.collect import TRAINING_STAGES, Run
from nas_transfer.report.nets import dataset, kind_of, schedule
from nas_transfer.runs import Result, files

COLUMNS = (
    "run", "stage", "task", "kind", "dataset", "supernet", "arch", "arch_id", "score_key", "score", "macs", "macs_body",
    "params", "input_size", "steps", "images_seen", "passes", "seconds", "devices", "gpu_hours", "hypervolume", "seed",
    "git", "weights", "log",
)  # fmt: skip


def csv_text(runs: Sequence[Run]) -> str:
    """A row for each finished run, with the numbers of its result; scores are fractions, what is unknown is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        if run.result is not None:
            writer.writerow(["" if cell is None else cell for cell in _cells(run, run.result)])
    return stream.getvalue()


def _cells(run: Run, result: Result) -> tuple[object, ...]:
    costs, steps = result.costs, schedule(run)
    trained_arch = run.config.get("arch") if run.stage in TRAINING_STAGES else None  # other stages ignore the key
    weights, log = run.folder / files.WEIGHTS, run.folder / files.LOG
    return (
        run.folder, run.stage, run.task, kind_of(result).title, dataset(run), run.config.get("supernet.name"),
        trained_arch, short_id(result.arch) if result.arch else None, result.score_key, result.score,
        costs.macs["total"], costs.macs.get("body"), costs.params["total"], costs.size,
        steps[0] if steps is not None else None, result.images_seen, result.images_seen * result.passes_per_image,
        result.seconds, result.devices, result.gpu_hours,
        result.search.hypervolume if result.search is not None else None, result.seed, result.git,
        weights if weights.is_file() else None, log if log.is_file() else None,
    )  # fmt: skip
