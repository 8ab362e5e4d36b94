"""The kinds of attempts: each takes a generator of random numbers and a ground, and makes one attempt."""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from hydra.utils import get_method as hydra_get_method
from omegaconf import OmegaConf

from hostile.attempts import BAD_INPUT, fault, run_command
from hostile.stages import NET, ODDS, PARENT, SAME, STAGES, Ground, left_by

Attempt = Callable[[random.Random, Ground], tuple[str, str]]
"""Returns the name of the attempt, and what was wrong with it."""


def kill(draw: random.Random, ground: Ground) -> tuple[str, str]:
    """Kill a stage once or twice at random times, and repeat its command to its end."""
    stage = draw.choices(list(STAGES), [ODDS.get(stage, 1) for stage in STAGES])[0]
    seconds, expected = ground.whole(stage)
    folder = ground.copy()
    times = [draw.uniform(0, seconds) for _ in range(draw.choice([1, 1, 2]))]
    name = f"{stage} killed after {', '.join(f'{time:.2f}' for time in times)} s"
    for after in times:
        wrong = fault(run_command(folder, STAGES[stage], kill_after=after), (0, -9))
        if wrong:
            return name, wrong
    wrong = fault(run_command(folder, STAGES[stage]), (0,))
    if not wrong and left_by(stage, folder) != expected:
        wrong = f"another {SAME[stage]} than without the kill"
    return name, wrong


class AcceptedError(Exception):
    """A configuration was accepted."""


def _accept(*_: object, **__: object) -> None:
    raise AcceptedError("accepted")


def _run_nothing() -> None:
    """Let stages begin no work: what reaches them was accepted."""
    import hydra

    import nas_transfer.stages.search

    nas_transfer.stages.search.search = _accept
    hydra.utils.get_method = lambda name: _accept if name.startswith("nas_transfer.stages") else hydra_get_method(name)


def configuration(draw: random.Random, ground: Ground) -> tuple[str, str]:
    """Give one to three keys of a stage wrong values, drawn from the types in its schema."""
    from nas_transfer.stages.config.entry import record_of
    from tests.stages.test_run_directory import composed
    from tests.stages.test_wrong_values import COMMANDS
    from tests.stages.wrong_values import wrong_values

    command = draw.choice(list(COMMANDS))
    if command not in _cases:
        cfg = composed(*COMMANDS[command], "name=mine")
        record = record_of(cfg)
        _cases[command] = [case for case in wrong_values(cfg, record) if "[" not in case[0]]
    cases = draw.sample(_cases[command], draw.choice([1, 1, 1, 2, 3]))
    overrides = [f"++{path}={text_of(value)}" for path, value in cases]
    shutil.rmtree(ground.work, ignore_errors=True)
    ground.work.mkdir()
    arguments = [*COMMANDS[command], "name=mine", *overrides]
    ended = run_command(ground.work, arguments, prepare=_run_nothing)
    wrong = "silent success" if "AcceptedError" in ended.errors else fault(ended, (BAD_INPUT,))
    left = [path for path in ground.work.rglob("*") if path.is_file() and path.name != "run.lock"]
    return f"{command} {' '.join(overrides)}", wrong or (f"left {left[0].name}" if left else "")


_cases: dict[str, list[tuple[str, object]]] = {}


def text_of(value: object) -> str:
    """A value in the grammar of Hydra's command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {text_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    return repr(value)


def damaged_file(draw: random.Random, ground: Ground) -> tuple[str, str]:
    """Damage one file of a finished or unfinished run, and repeat the command or use the run."""
    stage = draw.choice(["pretrain", "search", "proxy"])
    _, expected = ground.whole(stage)
    folder = _finished(stage, ground)
    run = folder / f"runs/{stage}/shapes_cls/mine"
    unfinished = draw.random() < 0.5
    if unfinished:
        (run / "result.json").unlink()
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path = draw.choice(files)
    how = draw.choice(list(DAMAGES))
    DAMAGES[how](path, draw)
    used = draw.random() < 0.3 and stage == "pretrain"
    command = (
        ["stage=evaluate", *STAGES["evaluate"][1:-1], f"weights={run.relative_to(folder)}"] if used else STAGES[stage]
    )
    name = f"{stage}{' without result' * unfinished}: {path.relative_to(run)} {how}{', as weights' * used}"
    ended = run_command(folder, command)
    wrong = fault(ended, (0, BAD_INPUT))
    named = run.name in ended.errors or path.name in ended.errors
    if not wrong and ended.code == BAD_INPUT and not named:
        wrong = f"the sentence names no file: {ended.errors.strip()}"
    own = path.name in ("result.json", SAME[stage])
    if not wrong and ended.code == 0 and not used and not own and left_by(stage, folder) != expected:
        wrong = f"another {SAME[stage]} than before"
    return name, wrong


_kept: dict[str, Path] = {}


def _finished(stage: str, ground: Ground) -> Path:
    """A copy of the ground in which a stage has ended."""
    if stage not in _kept:
        kept = ground.folder.with_name(f"finished_{stage}")
        folder = ground.copy()
        run_command(folder, STAGES[stage])
        shutil.copytree(folder, kept)
        _kept[stage] = kept
    shutil.rmtree(ground.work, ignore_errors=True)
    shutil.copytree(_kept[stage], ground.work)
    return ground.work


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(1 + len(content) // 50):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _make_folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": lambda path, draw: os.truncate(path, int(path.stat().st_size * draw.random())),
    "empty": lambda path, _: path.write_bytes(b""),
    "garbage": lambda path, draw: path.write_bytes(draw.randbytes(500)),
    "with flipped bits": _flip,
    "missing": lambda path, _: path.unlink(),
    "replaced by a folder": _make_folder,
    "replaced by a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
    "replaced by another record": lambda path, _: path.write_text('{"format": 1}'),
}


def stranger(draw: random.Random, ground: Ground) -> tuple[str, str]:
    """Use a run folder whose configuration names code of a stranger."""
    from tests.stages.test_strange_runs import HOSTILE, MARK, SPY, write_run

    shutil.rmtree(ground.work, ignore_errors=True)
    ground.work.mkdir()
    (ground.work / "spy.py").write_text(SPY)
    what = draw.choice(list(HOSTILE))

    def change(cfg: object) -> None:
        OmegaConf.update(cfg, "data.extra", "spy.Spy", force_add=True)  # type: ignore[arg-type]
        HOSTILE[what](cfg)  # type: ignore[arg-type]

    run = write_run(ground.work, change, "shapes_cls")
    shutil.copy(ground.folder / draw.choice([NET, PARENT]) / "weights.pt", run / "weights.pt")
    stage = draw.choice(["predict", "export"])
    images = [f"images={ground.folder}/data/val"] if stage == "predict" else []
    ended = run_command(ground.work, [f"stage={stage}", "weights=run", *images])
    wrong = fault(ended, (BAD_INPUT,))
    if (ground.work / MARK).exists():
        wrong = "its code ran"
    return f"{stage} of a run with {what}", wrong
