"""The command line: ``python -m nas_transfer stage=<stage> task=<task> [key=value ...]``.

Nothing heavy is imported before a stage runs, so that ``--help`` and ``--cfg job`` answer at once.
"""

from __future__ import annotations

import difflib
import io
import itertools
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas_transfer.errors import ConfigError, NasTransferError, file_fault, storage_error
from nas_transfer.paths import PACKAGE, conf_dir
from nas_transfer.runs import ArchContent, Result, files
from nas_transfer.stages.common.kept import CURRENT
from nas_transfer.stages.common.run_directory import is_main_process, log_to
from nas_transfer.stages.common.signals import RECEIVER, WORDS, EndedBySignal
from nas_transfer.stages.config.entry import begin_run, run_name
from nas_transfer.stages.config.guesses import choice_hint, refuse_first_guesses
from nas_transfer.stages.config.heads import GROUPS, one_choice, wrong_group
from nas_transfer.stages.config.trained import trained_task
from nas_transfer.sweeper import register

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128
"""Added to the number of a signal, as shells do: 130 for SIGINT, 143 for SIGTERM."""
HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")

register()
OmegaConf.register_new_resolver("run_name", run_name, replace=True)
OmegaConf.register_new_resolver("trained_task", trained_task, replace=True)
logger = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def run_stage(cfg: DictConfig) -> float | None:
    """Run one stage in its folder, or print the result of a finished run; returns the score."""
    try:
        return _run_stage(cfg)
    except (NasTransferError, InstantiationException) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # one failed job must not end the others: the sweeper collects it
        _fail(_composition_sentence(error))  # here, before Hydra adds lines
    except OmegaConfBaseException as error:  # a defect, which no command can correct: keep the traceback
        raise RuntimeError(f"stage={cfg.stage.name} reads a key that the configuration does not have") from error
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _fail_for_files(error)


def _run_stage(cfg: DictConfig) -> float | None:
    if OmegaConf.select(cfg, "search.job") is not None:  # one of a search's jobs: the folder is the search's
        hydra.utils.get_method(cfg.stage.run)(cfg, Path(cfg.run_dir))
        return None
    _refuse_relaunching_in_a_sweep(cfg)
    with begin_run(cfg, cast(DictConfig, HydraConfig.get()), imports=False) as (_, run):
        log_to(run.folder)
        result = run.result()
        if result is None:
            result = hydra.utils.get_method(cfg.stage.run)(cfg, run.folder)
            if result is None:  # a rank that does not write, or a stage without a result
                return None
            result.write(run.folder)
        else:
            logger.info("already finished: %s", run.folder / files.RESULT)
        print(summary(result, run.folder))
        return result.score


def _refuse_relaunching_in_a_sweep(cfg: DictConfig) -> None:
    """Refuse several devices without SLURM: Lightning repeats the command for each device, and so the whole sweep."""
    several = cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes not in (1, None)
    if several and HydraConfig.get().mode == RunMode.MULTIRUN and "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(
            f"trainer.devices must be 1 in a sweep on this machine, got {cfg.trainer.devices}: "
            "use hydra/launcher=slurm, or run a separate command for each run, without -m"
        )


def _refuse_folders_of_hydra(arguments: Sequence[str]) -> None:
    """Refuse Hydra's folder keys, which cannot set the run folder. Lightning sets one for the processes it starts."""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key in HYDRA_FOLDERS and is_main_process():
            raise ConfigError(f"{key} cannot set the run folder, got {value}: use run_dir=..., runs=... or name=...")


def main() -> None:
    """Entry point. Bad input gives one sentence and exit code 2, a defect of the program gives a traceback.

    SIGTERM ends with exit code 143, SIGINT with 130.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and the sentence is ours
    # OpenMP's threads spin while they wait: where other work holds a core, each small layer then costs a scheduler tick
    # (a detector on two busy cores: 6 s a step instead of 0.5). Read by torch when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.raiseExceptions = False  # a log that cannot be written prints no traceback: the disk is full
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    RECEIVER.install()
    try:
        refuse_first_guesses(sys.argv[1:])
        _refuse_folders_of_hydra(sys.argv[1:])
        run_stage()
    except (NasTransferError, HydraException, OmegaConfBaseException) as error:
        _fail(_composition_sentence(error))
    except ValueError as error:
        if not _is_of_hydra(error):
            raise
        _fail(str(error))  # flags that contradict each other, or an argument without a key
    except OSError as error:
        if storage_error(error) is None and _is_of_hydra(error):
            _fail(f"the folder {error.filename} cannot be made ({error.strerror}): use another runs=... or name=...")
        _fail_for_files(error)
    except EndedBySignal as ended:
        _interrupted(ended.number)
    except KeyboardInterrupt:
        _interrupted(signal.SIGINT)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            _interrupted(signal.SIGINT)
        if RECEIVER.pending is not None:  # and SIGTERM on one of several ranks into exit code 0
            _interrupted(RECEIVER.pending)
        raise
    except Exception as error:
        _fail_for_files(error)


@contextmanager
def sentences(arguments: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf about these arguments into a ConfigError of one sentence."""
    try:
        yield
    except NasTransferError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_composition_sentence(error, arguments)) from error


def _is_of_hydra(error: Exception) -> bool:
    """Whether it was raised below Hydra before a stage began."""
    files_of_frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    package = Path(hydra.__file__).parent
    below = itertools.dropwhile(lambda file: not file.is_relative_to(package), files_of_frames)
    first = next(below, None)
    return first is not None and not any(file.is_relative_to(PACKAGE) for file in below)


def _fail_for_files(error: Exception) -> NoReturn:
    """End with one sentence where the file system is at fault; any other error is raised again."""
    sentence = file_fault(error)
    if sentence is None:
        raise error
    _fail(sentence)


def _interrupted(number: signal.Signals) -> NoReturn:
    if is_main_process():
        print(f"\n{WORDS[number]}: {CURRENT.kept()}", file=sys.stderr)
    sys.exit(EXIT_SIGNAL + number)


def _fail(sentence: str) -> NoReturn:
    cause = " ".join(sentence.split())
    print(f"error: {cause}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _composition_sentence(error: Exception, arguments: Sequence[str] | None = None) -> str:
    """An error as one sentence; for an unknown key or choice with the nearest known one."""
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what a constructor or a resolver raised
        if isinstance(cause, NasTransferError):
            # Raised in a data loading process, it comes with that process's traceback before it.
            return str(cause).rpartition(f"{type(cause).__module__}.{type(cause).__qualname__}: ")[2].strip()
        cause = cause.__cause__
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        similar = difflib.get_close_matches(choice, error.options, n=1)
        hint = choice_hint(group, choice)
        if similar and (hint is None or group == "task"):
            hint = f"did you mean '{similar[0]}'?"
        remedy = hint or "name one of these"
        return f"{group} must be one of {', '.join(error.options)}, got '{choice}': {remedy}"
    given = sys.argv[1:] if arguments is None else arguments
    listed = re.search(r"resolving interpolation '\$\{(\w+)\}'", text)  # a recipe is chosen by the name of one head
    if listed is not None and listed.group(1) in GROUPS:
        return one_choice(listed.group(1), _choice_in(given, listed.group(1)))
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown is None:
        nested = error.__cause__
        return f"{text} {nested}" if nested is not None and str(nested) not in text else text
    key = unknown.group(1).lstrip("+~")
    if key in GROUPS:
        others = [one for one in given if not one.startswith(f"{key}=")]
        return wrong_group(_composed(others), key, _choice_in(given, key))
    if (conf_dir() / key).is_dir():
        return f"this task has no {key} to choose: remove {key} from the command, or choose another task"
    near = _nearest(key, _known_keys(given))
    return f"'{key}' is not a key of the configuration: did you mean '{near}'? (--cfg job shows all keys)"


def _choice_in(arguments: Sequence[str], group: str) -> str:
    """What arguments choose of a group."""
    return next((one.partition("=")[2] for one in arguments if one.partition("=")[0].lstrip("+~") == group), "")


def _nearest(key: str, known: Sequence[str]) -> str:
    """The known key that ends in the same word, `task.recipe.lr` for `lr`, else the most similar one."""
    last = key.rpartition(".")[2]
    same_word = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return difflib.get_close_matches(key, same_word or known, n=1, cutoff=0.0)[0]


def _known_keys(arguments: Sequence[str]) -> list[str]:
    """All dotted keys of the configuration as far as the command line can be composed without the unknown key."""
    cfg = _composed(arguments)
    keys: list[str] = []

    def collect(node: object, prefix: str) -> None:
        for key, child in node.items() if isinstance(node, dict) else ():
            keys.append(f"{prefix}{key}")
            collect(child, f"{prefix}{key}.")

    collect(OmegaConf.to_container(cfg), "")
    return keys


def _composed(arguments: Sequence[str]) -> DictConfig:
    """The configuration with those of the arguments that choose a file of ``conf/``."""
    groups = [argument for argument in arguments if (conf_dir() / f"{argument.replace('=', '/', 1)}.yaml").is_file()]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", groups)


def summary(result: Result, folder: Path) -> str:
    """A run's result for a person: score, metrics in percent, costs with their input size."""
    lines = [f"{result.stage} {result.task}: {folder}"]
    lines.append(f"  arch          {'supernet' if result.arch is None else _short(result.arch)}")
    if result.score is not None:
        lines.append(f"  {result.score_key:<13} {100 * result.score:.2f} %")
    metrics = {name: value for name, value in result.metrics.items() if name != result.score_key}
    if metrics:
        texts = (f"{name} {100 * value:.2f}" for name, value in metrics.items())
        lines.append(f"  metrics       {', '.join(texts)} (%)")
    costs = result.costs
    counted = f"{costs.num_classes} {costs.classes_are}"
    for unit, by_part in (("macs", costs.macs), ("params", costs.params)):
        parts = ", ".join(f"{part} {value / 1e6:.3f}" for part, value in by_part.items())
        lines.append(f"  {unit:<13} {parts} (M, at {costs.size}, {counted})")
    lines.append(f"  checkpoint    {costs.params_checkpoint / 1e6:.3f} M params with the shortcuts that are never used")
    if result.images_seen:
        rate = result.images_seen / max(result.seconds, 1e-9)
        lines.append(f"  training      {result.images_seen} images in {result.seconds:.0f} s, {rate:.1f} images/s")
    if result.training is not None:
        lines.append(f"  scoring       {result.training}")
    return "\n".join(lines)


def _short(arch: ArchContent) -> str:
    return " ".join(f"{key}={value}".replace(", ", ",") for key, value in arch.items())
