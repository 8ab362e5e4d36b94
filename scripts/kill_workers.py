"""Kill workers of a search at random while it runs, and check that no result is lost and none is told twice.

    python scripts/kill_workers.py [search|proxy] [--launcher local|ray|slurm] [--trials 60] [--workers 4] [--kills 12]

A small supernet is trained for a few steps, then `stage=search`, or `stage=proxy` with rungs, runs with workers on
`task=shapes_cls`. `--launcher local` runs them as processes of this machine. `--launcher slurm` uses the cluster that
answers to `sinfo`, whose nodes must share the folder (`--keep`). In both, the same command adds a worker after every
second kill. `--launcher ray` starts a Ray cluster of two nodes on the loopback interface and stops it at the end: Ray
starts killed workers again, and the same command adds a worker once. Kills (SIGKILL; `scancel --signal=KILL` in SLURM)
are spread over the trials, and hit workers that are chosen at random, those that still start included. Outside SLURM,
workers that joined are spared until one of them has evaluated a trial. Each evaluation sleeps for `--pause` seconds.
After the first kill, evaluations are held until the first worker that joins asks for a trial, however long it takes to
start.

Checked against the database and the files: each trial has one finished attempt with values or a reason, its file says
the same, the front is what the files make it, and workers that joined evaluated trials. Needs a checkout; Ray needs
the extra `[ray]`, SLURM the extra `[slurm]`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from hostile.pause import HOLD
from hostile.ray_nodes import children, ray_nodes, raylets
from hostile.slurm_jobs import running_jobs, submitted_jobs
from hostile.stages import COMMON, PARENT, PARENT_COMMAND
from optuna.trial import TrialState

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = {
    "search": ["stage=search", "search.frozen={resolution: 48}"],
    "proxy": ["stage=proxy", "search.frozen={resolution: 48}", "proxy.rungs=[0,2,4]", "proxy.warmup_steps=1"],
}
PAUSE = "+search.objectives.pause={{_target_: hostile.pause.Pause, direction: minimize, seconds: {}}}"
SLURM = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "+hydra.launcher.additional_parameters={mem: 2000}"]
ASKS = "this worker asks for trials"
END_SECONDS = 3000.0


@dataclass
class Search:
    """A search with workers, all commands that take part in it, and what was done to it.

    Attributes:
        folder: where its commands run.
        options: the options of this script.
        address: address of the Ray cluster, None for processes of this machine.
        nodes: folder of the Ray cluster.
    """

    folder: Path
    options: argparse.Namespace
    address: str | None
    nodes: Path
    commands: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.options.stage / "shapes_cls" / "mine"

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder}/search.db"

    def start(self, workers: int) -> None:
        """Start the search, or add workers to it."""
        launcher = {
            "local": [], "slurm": SLURM, "ray": ["hydra/launcher=ray", f"hydra.launcher.address={self.address}"]
        }[self.options.launcher]  # fmt: skip
        command = [
            *STAGES[self.options.stage], *COMMON, f"weights={PARENT}", f"search.trials={self.options.trials}",
            "search.sampler.num_random=10", f"search.workers={workers}", "search.grace_seconds=20",
            f"search.storage={self.database}", "search.max_failures=20", PAUSE.format(self.options.pause), *launcher,
        ]  # fmt: skip
        log = self.folder / f"log_{len(self.commands)}.txt"
        self.commands.append(start(self.folder, log, command))

    def kill_one(self, rng: random.Random) -> bool:
        """Kill a worker that is chosen at random, those that still start included; False if none runs."""
        if self.options.launcher == "slurm":
            jobs = running_jobs(submitted_jobs(self.run))
            if jobs:
                subprocess.run(["scancel", "--signal=KILL", rng.choice(jobs)], check=True)
            return bool(jobs)
        if self.options.launcher == "ray":
            spared = set() if self.num_evaluated_by_joined() else self.joined_on_ray()
            started = children(raylets(self.nodes))
            processes = [pid for pid, title in started if title.startswith("ray::_run") and pid not in spared]
        else:
            commands = self.commands if self.num_evaluated_by_joined() else self.commands[:1]
            started = list(children({command.pid for command in commands}))
            servers = {process for process, command in started if "forkserver" in command}
            processes = [process for process, command in started if "spawn_main" in command]
            processes += [process for process, _ in children(servers)]
        if processes:
            os.kill(rng.choice(processes), signal.SIGKILL)
        return bool(processes)

    def num_told(self) -> int:
        """Number of trials that have a file."""
        return len(list((self.run / "trials").glob("*.json")))

    def logs(self, first: int = 0) -> str:
        """The output of all commands, or of those that were started later."""
        paths = [self.folder / f"log_{number}.txt" for number in range(first, len(self.commands))]
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def logs_of_joined(self) -> str:
        """The output of the workers that joined the search, and of the commands that added them."""
        text = self.logs(1)
        if self.options.launcher == "slurm":  # jobs write files of their own
            jobs = set(re.findall(r"\d+(?:_\d+)?", " ".join(re.findall(r"submitted to SLURM: (.*)", text))))
            outputs = (path for job in jobs for path in (self.run / ".submitit").glob(f"*/{job}/*_log.out"))
            text = "\n".join(path.read_text(errors="replace") for path in outputs)
        return text

    def joined_on_ray(self) -> set[int]:
        """Process numbers of the workers that joined, which Ray prints before each line of their output."""
        return {int(pid) for pid in re.findall(r"\(_run pid=(\d+)", self.logs(1))}

    def num_evaluated_by_joined(self) -> int:
        """Number of trials that workers have evaluated which joined the search."""
        return len(re.findall(r"\] trial \d+: ", self.logs_of_joined()))

    def join(self) -> None:
        """Add a worker; hold all evaluations until the first one that joins asks for trials."""
        is_first = len(self.commands) == 1
        if is_first:
            (self.folder / HOLD).touch()
        self.start(1)
        end = time.monotonic() + END_SECONDS
        while is_first and ASKS not in self.logs_of_joined() and time.monotonic() < end:
            time.sleep(0.2)
        (self.folder / HOLD).unlink(missing_ok=True)


def start(folder: Path, log: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the program in a folder."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "nas_transfer", *command],
            cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip


def run_with_kills(search: Search, rng: random.Random) -> None:
    """Run the search to its end, kill workers, and add others."""
    options = search.options
    search.start(options.workers)
    end = time.monotonic() + END_SECONDS
    while search.commands[0].poll() is None:
        if time.monotonic() > end:
            raise SystemExit(f"the search does not end: {search.logs()}")
        time.sleep(0.1)
        due = options.trials * (search.kills + 1) / (options.kills + 1)
        if search.kills < options.kills and search.num_told() >= due:
            time.sleep(rng.random())  # at another point of an evaluation each time
            if not search.kill_one(rng):
                continue
            search.kills += 1
            if search.kills == 1 or (options.launcher != "ray" and search.kills % 2 == 0):
                search.join()
    for command in search.commands:
        command.wait(END_SECONDS)


def faults(search: Search) -> Iterator[str]:
    """What is wrong with the finished search, sentence by sentence."""
    count = search.options.trials
    if search.commands[0].returncode != 0:
        yield f"the search ended with exit code {search.commands[0].returncode}"
    if search.kills < search.options.kills:
        yield f"it ended after {search.kills} of {search.options.kills} kills"
    if not search.num_evaluated_by_joined():
        yield "workers that joined evaluated no trial"
    storage = optuna.storages.RDBStorage(search.database)
    [name] = optuna.study.get_all_study_names(storage)
    attempts: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in optuna.load_study(study_name=name, storage=storage).trials:
        attempts.setdefault(trial.system_attrs.get("failed_trial", trial.number), []).append(trial)
    files = {int(path.stem): json.loads(path.read_text()) for path in (search.run / "trials").glob("*.json")}
    if sorted(files) != list(range(count)) or len(attempts) != count:
        yield f"{len(files)} files and {len(attempts)} trials in the database instead of {count}"
        return
    for number, (_, tried) in enumerate(sorted(attempts.items())):
        told = [each for each in tried if each.state == TrialState.COMPLETE or "reason" in each.user_attrs]
        outcome = files[number]
        if len(told) > 1:
            yield f"trial {number} was told {len(told)} times"
        if any(not each.state.is_finished() for each in tried):
            yield f"trial {number} is not finished"
        if told and list(outcome["values"].values()) != list(told[0].values or []):
            yield f"the file of trial {number} holds {outcome['values']}, the database {told[0].values}"
        if not outcome["values"] and not outcome["reason"]:
            yield f"trial {number} has neither values nor a reason"
    front = json.loads((search.run / "front.json").read_text())
    points = {
        number: (-each["values"]["score"], each["values"]["macs"]) for number, each in files.items() if each["values"]
    }
    best = {
        number for number, point in points.items()
        if not any(all(a <= b for a, b in zip(other, point)) and other != point for other in points.values())
    }  # fmt: skip
    shown = {member["number"] for member in front["trials"]}
    if {points[number] for number in shown} != {points[number] for number in best}:
        yield f"the front holds the trials {sorted(shown)}, the files make it {sorted(best)}"


def summary(search: Search, seconds: float) -> str:
    """What the search came to, in one line."""
    files = [json.loads(path.read_text()) for path in (search.run / "trials").glob("*.json")]
    kinds = Counter(
        "scored" if each["values"] else "stopped at a rung" if each["left_out"] else "failed" for each in files
    )
    again = len(set(re.findall(r"the worker of trial (\d+) died", (search.run / "log.txt").read_text())))
    return (
        f"stage={search.options.stage}, launcher {search.options.launcher}, {search.options.workers} workers: "
        f"{search.kills} kills in {seconds:.0f} s; {dict(kinds)}; {again} trials asked again; "
        f"{len(search.commands) - 1} commands added workers, which evaluated {search.num_evaluated_by_joined()} trials"
    )


@contextmanager
def cluster(launcher: str) -> Iterator[tuple[str | None, Path]]:
    """The address and the folder of a Ray cluster, if one is asked for."""
    if launcher != "ray":
        yield None, Path()
        return
    with ray_nodes(2, 3) as started:
        yield started


def main() -> int:
    """Run the search, kill workers and print what is wrong; returns 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=STAGES, default="search")
    parser.add_argument("--launcher", choices=["local", "ray", "slurm"], default="local")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that each evaluation sleeps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder that keeps runs and logs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_workers_") as name, cluster(options.launcher) as (address, nodes):
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if start(folder, folder / "parent.txt", PARENT_COMMAND).wait():
            raise SystemExit((folder / "parent.txt").read_text())
        search = Search(folder, options, address, nodes)
        begin = time.monotonic()
        run_with_kills(search, random.Random(options.seed))
        seconds = time.monotonic() - begin
        wrong = list(faults(search))
        print(summary(search, seconds))
        print("\n".join(wrong) if wrong else "0 lost, 0 told twice, front equal to the files")
        if wrong:
            print(search.logs())
        return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
