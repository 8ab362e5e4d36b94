"""Check the program on this machine's GPU, or on the CPU where there is none; see docs/guide/gpu.md.

    python scripts/check_gpu.py [--tiny] [--only NAME ...] [--json FILE] [--minutes 20]

The table is also written to FILE, and the output of all commands beside it. To add a check, write a function in
scripts/gpu_checks that takes a `Context` and yields rows, and name it in `CHECKS`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_checks.runner import OUTPUT, Check, run_checks
from gpu_checks.table import Table

CHECKS = (
    Check("subnets", "gpu_checks.networks:check_subnets"),
    Check("sandwich step", "gpu_checks.steps:check_sandwich_step"),
    Check("detector", "gpu_checks.commands:check_detector"),
    Check("resume", "gpu_checks.commands:check_resume"),
    Check("search", "gpu_checks.commands:check_search"),
    Check("proxy search", "gpu_checks.commands:check_proxy_search"),
    Check("workers", "gpu_checks.commands:check_workers"),
    Check("bf16 evaluation", "gpu_checks.commands:check_bf16_evaluation"),
    Check("latency", "gpu_checks.networks:check_latency"),
    Check("training speed", "gpu_checks.speed:check_training_speed"),
    Check("data loading", "gpu_checks.commands:check_data_loading"),
    Check("export", "gpu_checks.commands:check_export"),
    Check("compile", "gpu_checks.networks:check_compile"),
)
"""In order of importance: the last ones are skipped if the time is up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print and write the table; returns 1 if a result is wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="smaller networks and fewer steps")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="these checks alone")
    parser.add_argument("--json", type=Path, default=Path("runs/check_gpu.json"), help="where the table is written")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which the rest is skipped")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported
    checks = [check for check in CHECKS if options.only is None or check.name in options.only]
    table = Table(sys.stdout)
    with tempfile.TemporaryDirectory(prefix="check_gpu_") as folder:
        run_checks(checks, table, Path(folder), tiny=options.tiny, seconds=60 * options.minutes)
        table.print_end()
        table.write_json(options.json)
        output = Path(folder) / OUTPUT
        if output.is_file():
            shutil.copy(output, options.json.with_suffix(".txt"))
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
