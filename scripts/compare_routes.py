"""Choose archs and compare routes, for compare_routes.sh and compare_whole.sh.

python scripts/compare_routes.py choose SEARCH_RUN 5      print the paths of five arch files spread over the front
python scripts/compare_routes.py baselines SEARCH_RUN     write and print arch files of its baselines, made by hand
python scripts/compare_routes.py sizes RUN                write and print the same from a run of the whole network
python scripts/compare_routes.py table RUNS TASK          print the networks of each route, and their differences
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from nas_transfer.api.running import composed
from nas_transfer.report.routes import baseline_archs, chosen_archs, compare
from nas_transfer.report.tables import route_table
from nas_transfer.runs import files
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.problem import Problem
from nas_transfer.stages.common.build import build_blank
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import with_trained_groups


def sized_archs(run: Path) -> list[Path]:
    """Arch files of the whole network at each input size of its task, largest first, written into its run folder."""
    cfg = composed(["stage=predict"])
    cfg.weights, cfg.images = str(run), "-"
    config = read_config(with_trained_groups(cfg), PredictConfig)
    task = build_blank(config, config.supernet.build())
    paths = []
    for number, arch in enumerate(Problem(task.space, input_gene=task.input_gene).resized):
        paths.append(run / files.ARCHS_FOLDER / f"size_{number}.yaml")
        paths[-1].parent.mkdir(exist_ok=True)
        write_text(paths[-1], yaml.safe_dump(arch.to_dict(), sort_keys=False, default_flow_style=None))
    return paths


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    choose = commands.add_parser("choose")
    choose.add_argument("run", type=Path)
    choose.add_argument("count", type=int)
    baselines = commands.add_parser("baselines")
    baselines.add_argument("run", type=Path)
    sizes = commands.add_parser("sizes")
    sizes.add_argument("run", type=Path)
    table = commands.add_parser("table")
    table.add_argument("runs", type=Path)
    table.add_argument("task")
    table.add_argument("--stage", default="finetune", help="of the runs with the scores of the networks")
    options = parser.parse_args()
    if options.command == "choose":
        print(*chosen_archs(options.run, options.count), sep="\n")
    elif options.command == "baselines":
        print(*baseline_archs(options.run), sep="\n")
    elif options.command == "sizes":
        print(*sized_archs(options.run), sep="\n")
    else:
        print(route_table(compare(options.runs, options.task, stage=options.stage), options.runs).markdown())


if __name__ == "__main__":
    main()
