"""The names of all files and folders that a run folder can hold.

Every other part of the program takes these names from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# Of every run
RESULT = "result.json"
RUN = "run.json"
LOG = "log.txt"
LOCK = "run.lock"
INPUTS = "inputs.json"
IMAGES_FOLDER = "images"
HYDRA_FOLDER = ".hydra"
CONFIG = f"{HYDRA_FOLDER}/config.yaml"
HYDRA_CONFIG = f"{HYDRA_FOLDER}/hydra.yaml"
OVERRIDES = f"{HYDRA_FOLDER}/overrides.yaml"

# Of a training
WEIGHTS = "weights.pt"
BEST_WEIGHTS = "best.pt"
BATCH_SIZE = "batch_size.json"
LAST_CHECKPOINT = "checkpoints/last.ckpt"
PREVIOUS_CHECKPOINT = "checkpoints/last.previous.ckpt"
LOGS_FOLDER = "logs"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "sample_predictions"
ANALYSIS = "analysis.json"
ANALYSIS_FOLDER = "analysis"
WORST_PREFIX = "worst_"

# Of a search
FRONT = "front.json"
STUDY = "study.journal"
STUDY_DATABASE = "study.db"
ASK_LOCK = "ask.lock"
ARCHS_FOLDER = "archs"
PICKED_ARCH = f"{ARCHS_FOLDER}/picked.yaml"
JOBS_FOLDER = "jobs"
TRIALS_FOLDER = "trials"
RUNGS_FOLDER = "rungs"
STATES_FOLDER = "states"
REPEATS_FOLDER = "repeats"
VALIDATION_FOLDER = "validation"
NETWORKS_FOLDER = "networks"
RACES_FOLDER = "races"
VALIDATION = "trust.json"
DAMAGE = "damage.json"
PREPARATION = "warm_start.spent.json"
PREPARATION_JOB = "prepare.json"
TIMING = "timing.json"
TIMING_JOB = "time.json"
PLAN = "plan.json"
WORKER_PREFIX = "worker_"
PROBE = "space.probe"
STARTED_SUFFIX = ".started"

# Of other stages
CHECK = "check.json"
PREVIEW = "preview.png"
OVERLAYS_FOLDER = "overlays"
LABELS_FOLDER = "labels"
LABEL_NAMES = "labels.csv"
PREDICTIONS_PREFIX = "predictions"
UNCHECKED_FOLDER = "unchecked"
ARCH = "arch.yaml"
TENSORS = "weights.safetensors"
BODY = "body.onnx"
MODEL = "model.onnx"
MODEL_RAW = "model_raw.onnx"
MODEL_INT8 = "model_int8.onnx"
MODEL_CARD = "model_card.md"
REPORT_PAGE, REPORT_MARKDOWN, REPORT_CSV = "report.html", "report.md", "report.csv"

RUN_MARKS = (RUN, RESULT, FRONT, WEIGHTS)
"""A folder that holds any of these is a run folder."""


BEFORE_WORK = (RUN, LOG, LOCK, INPUTS, IMAGES_FOLDER, HYDRA_FOLDER, LOGS_FOLDER, TENSORBOARD_FOLDER)
"""What a run folder holds of a command that ended before any work."""

WORK = (RESULT, FRONT, WEIGHTS, INPUTS, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, STUDY, STUDY_DATABASE)
"""What a run leaves in its folder after its configuration."""


def work_in(folder: Path, names: Sequence[str] = WORK) -> str | None:
    """The first of these names that is in a folder; None for none."""
    return next((name for name in names if (folder / name).exists()), None)


def previous(path: Path) -> Path:
    """Where the last but one version of a file is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def images_file(part: str) -> str:
    """Where the list of the images of a part of a dataset is written, relative to the run folder."""
    return f"{IMAGES_FOLDER}/{part}.txt.gz"


def openvino_file(name: str) -> str:
    """The network of an ONNX file in OpenVINO's format; its weights are beside it, with the ending ``.bin``."""
    return f"{name.removesuffix('.onnx')}_openvino.xml"


def trial_file(number: int) -> str:
    """Where the outcome of a trial is written, relative to the run folder."""
    return f"{TRIALS_FOLDER}/{number}.json"


def worker_job(name: str) -> str:
    """Where the job of a worker is written, relative to the run folder."""
    return f"{JOBS_FOLDER}/{WORKER_PREFIX}{name}.json"


def is_worker_job(path: Path) -> bool:
    """Whether a job asks for its trials by itself."""
    return path.name.startswith(WORKER_PREFIX)


def is_timing_job(path: Path) -> bool:
    """Whether a job times archs before a search."""
    return path.name == TIMING_JOB


def rung_files(folder: Path, steps: int) -> dict[int, Path]:
    """The files with the outcomes after so many training steps, by trial."""
    paths = (folder / RUNGS_FOLDER).glob(f"*.{steps}.json")
    return {int(path.name.partition(".")[0]): path for path in paths if path.name.partition(".")[0].isdigit()}


def rung_file(number: int, steps: int) -> str:
    """Where the outcome of a trial after so many training steps is written, relative to the run folder."""
    return f"{RUNGS_FOLDER}/{number}.{steps}.json"


def tally_file(number: int) -> str:
    """Where a trial of the front keeps what it did in each image, relative to the run folder."""
    return f"{RACES_FOLDER}/{number}.npz"


def repeat_file(number: int, repeat: int) -> str:
    """Where the outcome of a trial from another seed is written, relative to the run folder."""
    return f"{REPEATS_FOLDER}/{number}.{repeat}.json"


def validation_file(number: int, steps: int) -> str:
    """Where the outcome of a trial after a longer training is written, relative to the run folder."""
    return f"{VALIDATION_FOLDER}/{number}.{steps}.json"


def network_outcome(number: int) -> str:
    """Where the outcome of a trial whose network is kept is written, relative to the run folder."""
    return f"{NETWORKS_FOLDER}/trial_{number}.json"


def network_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial's network, ready for ``weights=``."""
    return folder / NETWORKS_FOLDER / f"trial_{number}"


def state_file(folder: Path, number: int, steps: int, fold: int | None = None) -> Path:
    """Where the training state of a trial's subnet is kept after so many steps, of each fold where there are folds."""
    return folder / STATES_FOLDER / f"{number}.{steps}{_of_fold(fold)}.ckpt"


def folds_file(folder: Path, outcome: str) -> Path:
    """Where an evaluation keeps what it has predicted after each fold; `outcome` is the file of its outcome."""
    return folder / STATES_FOLDER / f"{outcome.removesuffix('.json').replace('/', '-')}.folds.pt"


def warm_start_file(first: Path, fold: int | None) -> Path:
    """The weights from which the subnets of a fold are trained; `first` is the file of the first fold."""
    return first.with_name(f"{first.stem}{_of_fold(fold)}{first.suffix}") if fold else first


def spent_file(start: Path) -> str:
    """The name of the file beside the warm start of a later fold that says what it used."""
    return f"{start.stem}.spent.json"


def _of_fold(fold: int | None) -> str:
    return "" if fold is None else f".fold{fold}"


def arch_file(number: int) -> str:
    """Where the arch of a trial on the front is written, relative to the run folder."""
    return f"{ARCHS_FOLDER}/trial_{number}.yaml"


def trial_files(folder: Path) -> list[Path]:
    """The files with the outcomes of a search's trials, in trial order."""
    paths = [path for path in (folder / TRIALS_FOLDER).glob("*.json") if path.stem.isdigit() and path.is_file()]
    return sorted(paths, key=lambda path: int(path.stem))


def metrics_files(folder: Path) -> list[Path]:
    """The CSV logs of a training, one for each time it was started, in this order."""
    found = (folder / LOGS_FOLDER).glob("version_*/metrics.csv")
    paths = [path for path in found if path.parent.name[8:].isdigit() and path.is_file()]
    return sorted(paths, key=lambda path: int(path.parent.name[8:]))


def picture_files(folder: Path) -> list[tuple[str, list[Path]]]:
    """The pictures that a run drew, by the folder that holds them: `SAMPLES_FOLDER` and `OVERLAYS_FOLDER`."""
    suffixes = (".jpg", ".jpeg", ".png")
    return [
        (name, sorted(path for path in (folder / name).glob("*") if path.suffix in suffixes and path.is_file()))
        for name in (SAMPLES_FOLDER, OVERLAYS_FOLDER)
    ]
