"""What people type first gets a sentence that says what to write, and an ended run says what it keeps."""

from pathlib import Path

import pytest

from nas_transfer.errors import ConfigError
from nas_transfer.runs import files
from nas_transfer.stages.common.kept import CurrentRun
from nas_transfer.stages.config.guesses import choice_hint, refuse_first_guesses
from tests.test_cli import run, sentence

GUESSES = {
    (
        "train",
        "task=small_det",
    ): "'train' is not key=value: training a network on a task is stage=finetune",
    ("val",): "scoring a finished run is stage=evaluate with weights=RUN",
    ("predict", "weights=x"): "'predict' is not key=value: write stage=predict",
    ("small_det",): "'small_det' is not key=value: write task=small_det",
    ("nas-transfer", "task=small_det"): "name the program once",
    ("help",): "--help lists stages and tasks",
    ("--task", "small_det"): r"unrecognized arguments: --task: settings have no dashes, write task=small_det",
    ("--task=small_det",): r"unrecognized arguments: --task=small_det: settings have no dashes, write task=small_det",
    ("--epochs", "-m"): r"unrecognized arguments: --epochs: settings have no dashes, write epochs=VALUE",
    ("unheard",): "write settings such as task=small_det",
}


@pytest.mark.parametrize("arguments", GUESSES, ids=" ".join)
def test_first_guesses_are_told_what_to_write(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=GUESSES[arguments]):
        refuse_first_guesses(arguments)


def test_a_folder_is_told_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"write data.root={tmp_path} for a dataset"):
        refuse_first_guesses(["task=small_det", str(tmp_path)])
    assert choice_hint("data", str(tmp_path)) == f"the folder of a dataset is data.root={tmp_path}"
    assert choice_hint("data", "nowhere") is None


def test_arguments_of_hydra_are_no_guesses() -> None:
    refuse_first_guesses(["-m", "--config-dir", "mine", "task=a,b", "~data.split", "--cfg", "job", "+x=1", "--resolve"])
    refuse_first_guesses(["-cp", "conf", "-cn", "config.yaml", "hydra.run.dir=x", "-h"])


@pytest.mark.parametrize(
    ("group", "choice", "hint"),
    [
        ("stage", "train", "training a network on a task is stage=finetune, the default"),
        ("task", "detection", "for a small dataset, write task=small_det"),
        ("task", "yolov8-pose", "for a small dataset, write task=small_pose"),
        ("task", "MaskRCNN", "for a small dataset, write task=coco_insseg"),
        ("task", "unheard", None),
        ("sampler", "train", None),
    ],
)
def test_choices_that_other_programs_have_get_a_hint(group: str, choice: str, hint: str | None) -> None:
    assert choice_hint(group, choice) == hint


def test_an_ended_run_says_what_is_kept(tmp_path: Path) -> None:
    current = CurrentRun()
    assert current.kept() == "nothing has begun"
    current.begin(tmp_path)
    assert current.kept() == f"nothing is kept in {tmp_path} yet: the same command begins again"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / files.LAST_CHECKPOINT).touch()
    assert current.kept().startswith(f"the last state of the training is kept in {tmp_path}")
    current.saved_step = 12
    assert current.kept().startswith(f"the state after step 12 of the training is kept in {tmp_path}")
    (tmp_path / files.TRIALS_FOLDER).mkdir()
    (tmp_path / files.trial_file(3)).touch()
    assert current.kept().startswith(f"1 evaluated trial is kept in {tmp_path}")


@pytest.mark.slow
def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    assert sentence(run(tmp_path, "stage=train", code=2)).endswith("a task is stage=finetune, the default")
    assert sentence(run(tmp_path, "train", code=2)).startswith("error: 'train' is not key=value")
