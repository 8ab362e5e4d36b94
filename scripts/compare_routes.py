"""Choose archs and compare routes, for compare_routes.sh and compare_whole.sh.

python scripts/compare_routes.py choose SEARCH_RUN 5      print the paths of five arch files spread over the front
python scripts/compare_routes.py resized SEARCH_RUN       write and print arch files of the whole network at each size
python scripts/compare_routes.py table RUNS TASK          print the networks of each route, and their differences
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nas_transfer.report.routes import chosen_archs, compare, resized_archs
from nas_transfer.report.tables import route_table


def main() -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    choose = commands.add_parser("choose")
    choose.add_argument("run", type=Path)
    choose.add_argument("count", type=int)
    resized = commands.add_parser("resized")
    resized.add_argument("run", type=Path)
    table = commands.add_parser("table")
    table.add_argument("runs", type=Path)
    table.add_argument("task")
    table.add_argument("--stage", default="finetune", help="of the runs with the scores of the networks")
    options = parser.parse_args()
    if options.command == "choose":
        print(*chosen_archs(options.run, options.count), sep="\n")
    elif options.command == "resized":
        print(*resized_archs(options.run), sep="\n")
    else:
        print(route_table(compare(options.runs, options.task, stage=options.stage), options.runs).markdown())


if __name__ == "__main__":
    main()
