"""The command line as a user meets it: in a process of its own, in a folder of its own."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from nas_transfer.cli import _composition_sentence, main
from nas_transfer.errors import DataError
from nas_transfer.paths import conf_dir
from tests.guard import HANG_SECONDS

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "nas_transfer.stages.proxy", "nas_transfer.stages.search"])
PROFILE = ["stage=profile", "task=imagenet", "supernet=bignas"]


def run(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`; fail with its output if it ends with another exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "nas_transfer", *arguments], cwd=folder, capture_output=True, text=True,
        timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Fork:
    """The program in a process of its own, forked from one that has imported torch: that saves five seconds."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.arguments = arguments
        self.output = tempfile.TemporaryDirectory()
        self.streams = [Path(self.output.name, name) for name in ("stdout", "stderr")]
        for path in self.streams:
            path.touch()
        self.process = FORKS.Process(target=_main_in, args=(folder, arguments, self.streams, dict(os.environ)))
        self.process.start()

    def poll(self) -> int | None:
        """The exit code; None while the program runs."""
        return self.process.exitcode

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end; a program that hangs is killed."""
        self.process.join(HANG_SECONDS)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        with self.output:
            stdout, stderr = (path.read_text() for path in self.streams)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, stdout, stderr)

    def kill(self) -> None:
        """End the program by SIGKILL."""
        self.process.kill()
        self.wait()


def forked(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """As `run`, but in a `Fork`."""
    done = Fork(folder, *arguments).wait()
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _main_in(folder: Path, arguments: Sequence[str], streams: Sequence[Path], environment: dict[str, str]) -> None:
    """Run the program with these arguments in this process, which is good for nothing else after that."""
    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background may be made to ignore it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = ["nas_transfer", *arguments]
    main()


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The single line on stderr."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_names_every_stage_with_an_example_and_the_choices(tmp_path: Path) -> None:
    text = run(tmp_path, "--help").stdout
    for stage in sorted(path.stem for path in (conf_dir() / "stage").glob("*.yaml")):
        assert f"python -m nas_transfer stage={stage}" in text
    assert "coco_det" in text
    assert "bignas_nano" in text


def test_the_configuration_is_printed_without_loading_torch_or_numpy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['nas_transfer', '--cfg', 'job']\n"
        "from nas_transfer.cli import main\nmain()\n"
        "sys.exit(3 if {'torch', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "calibration_images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trainer.max_stps=3"], "trainer.max_steps"),
        (["task=coco_dett"], "did you mean 'coco_det'"),
        (["task=nothing"], "got 'nothing': name one of these"),
        (["lr=0.1"], "task.recipe.lr"),
        (["task=coco_det"], "data.root"),
        ([*PROFILE, "arch=attentivenas_a9"], "attentivenas_a"),
        ([*PROFILE, "arch=supernet"], "arch=supernet"),
        (["task=coco_det", "data.root=nowhere"], "nowhere"),
        (["stage=pretrain", "task=imagenet", "data.root=nowhere"], "nowhere"),
        (["stage=pretrain"], "stage=finetune"),
        (["stage=evaluate"], "weights="),
        (["trainer.max_epochs=0"], "trainer.max_steps"),
        (["resume=sometimes"], "resume=auto"),
        (["trainer.num_nodes=null"], "trainer.num_nodes must be"),
        (["task=shapes_det", "detector=[fcos,ssdlite]"], "use detector=several 'task.build.detector.heads=[...]'"),
        (["task=shapes_det", "head=simcc"], "task=shapes_det takes detector=coco, fcos, fcos_separable, "),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in sentence(forked(tmp_path, *arguments, code=2))


def test_several_faults_are_one_sentence_and_leave_no_folder(tmp_path: Path) -> None:
    text = sentence(forked(tmp_path, "task=coco_det", "num_threads=0", "task.recipe.lr=-1", "resume=perhaps", code=2))
    assert text.startswith("error: 4 faults in the configuration: ")
    for key in ("data.root", "num_threads", "recipe.lr", "resume"):
        assert key in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["hydra.run.dir=elsewhere", *PROFILE], "hydra.run.dir"),
        (["-m", "hydra.sweep.dir=elsewhere", *PROFILE], "hydra.sweep.dir"),
        (["-m", "hydra.sweep.subdir=elsewhere", *PROFILE], "hydra.sweep.subdir"),
    ],
)
def test_hydras_own_folder_keys_are_refused(tmp_path: Path, arguments: list[str], key: str) -> None:
    text = sentence(forked(tmp_path, *arguments, code=2))
    assert text == f"error: {key} cannot set the run folder, got elsewhere: use run_dir=..., runs=... or name=..."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["-h"], 0, "python -m nas_transfer stage=proxy"),
        (["--hydra-help"], 0, "--shell-completion"),
        (["--version"], 0, "Hydra 1."),
        (["--info", "searchpath"], 0, "Config search path"),
        (["--info", "plugins"], 0, "Installed Hydra Plugins"),
        (["--cfg", "job", "--package", "task.recipe"], 0, "lr_batch: 8"),
        (["--cfg", "job", "--resolve", "seed=5"], 0, "seed: 5"),
        (["-sc", "install=bash"], 0, "hydra_bash_completion"),
        (["--shell-completion", "uninstall=bash"], 0, "unset hydra_bash_completion"),
        (["--foo"], 2, "unrecognized arguments: --foo"),
        (["--foo=3", "task=coco_det"], 2, "unrecognized arguments: --foo=3"),
        (["--cfg", "everything"], 2, "argument --cfg/-c: invalid choice: 'everything'"),
        (["--shell-completion"], 2, "error: Expecting one subcommand from ['install', 'uninstall', 'query']"),
        (["--resolve"], 2, "error: The --resolve flag can only be used in conjunction with --cfg or --help"),
        (["--run", "--multirun"], 2, "error: Only one of --run, --multirun"),
        (["--config-name", "other"], 2, "error: Cannot find primary config 'other'"),
        (["task"], 2, "error: 'task' is not key=value: write settings such as task=small_det"),
    ],
)
def test_flags_are_those_of_any_hydra_program(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    done = forked(tmp_path, *arguments, code=code)
    assert expected in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_shell_completes_choices_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, expected in (("task=coco_", "task=coco_det"), ("task.recipe.opt", "task.recipe.optimizer=")):
        monkeypatch.setenv("COMP_LINE", f"nas-transfer {line}")
        assert expected in forked(tmp_path, "-sc", "query=bash").stdout


def test_an_arch_file_outside_the_space_names_the_gene_and_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "resolution: 192\nwidth: [16, 16, 24, 32, 64, 112, 192, 216, 1792]\ndepth: [1, 3, 3, 3, 3, 9, 1]\n"
        "kernel_size: [3, 3, 3, 3, 3, 3, 3]\nexpand_ratio: [1, 4, 4, 4, 4, 6, 6]\n"
    )
    text = sentence(forked(tmp_path, *PROFILE, "arch=mine.yaml", code=2))
    assert "depth.mb6" in text
    assert "[3, 4, 5, 6, 7, 8]" in text


@pytest.mark.parametrize(
    ("arch", "macs", "params", "checkpoint"),
    [("attentivenas_a0", 203.39, 8.954, 9.065), ("max", 1939.34, 23.404, 23.935)],
)
def test_profile_prints_the_published_costs_with_their_input_size(
    tmp_path: Path, arch: str, macs: float, params: float, checkpoint: float
) -> None:
    text = forked(tmp_path, *PROFILE, f"arch={arch}", "name=mine").stdout
    assert f"total {params:.3f}" in text
    assert f"{checkpoint:.3f} M params" in text
    assert ("192x192" if arch != "max" else "288x288") in text
    result = json.loads((tmp_path / "runs/profile/imagenet/mine/result.json").read_text())
    assert round(result["costs"]["macs"]["total"] / 1e6, 2) == macs
    assert result["status"] == "finished"


def test_profile_states_a_detectors_costs_by_part_without_reading_data(tmp_path: Path) -> None:
    forked(tmp_path, "stage=profile", "task=coco_det", "arch=bignas_350m", "name=mine")
    costs = json.loads((tmp_path / "runs/profile/coco_det/mine/result.json").read_text())["costs"]
    assert (costs["input_size"], costs["num_classes"]) == ([800, 1333], 80)
    assert set(costs["macs"]) == {"body", "neck", "head", "total"}
    # the published detector around a net of this cost: 128063 M
    assert costs["macs"]["total"] / 1e6 == pytest.approx(128063, rel=0.006)


def test_another_configuration_in_the_same_folder_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    forked(tmp_path, *PROFILE, "arch=min", "name=mine")
    folder = tmp_path / "runs/profile/imagenet/mine"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = sentence(forked(tmp_path, *PROFILE, "arch=max", "name=mine", code=2))
    assert "arch=min" in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_finished_run_prints_its_result_again_without_loading_torch(tmp_path: Path) -> None:
    first = run(tmp_path, *PROFILE, "arch=min").stdout
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    again = subprocess.run(
        [sys.executable, "-m", "nas_transfer", *PROFILE, "arch=min"],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert first.splitlines()[-5:] == again.stdout.splitlines()[-5:]
    assert " torch\n" not in again.stderr


class BrokenFiles(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        raise DataError("expected a label image at a.png, got none")


def test_an_error_from_a_data_loading_process_is_its_sentence_alone() -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(BrokenFiles(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert _composition_sentence(caught.value) == "expected a label image at a.png, got none"
    assert _composition_sentence(DataError("expected: a")) == "expected: a"


@pytest.mark.slow
def test_one_failed_job_of_a_sweep_does_not_end_the_others(tmp_path: Path) -> None:
    done = forked(tmp_path, "-m", *PROFILE, "arch=attentivenas_a9,min", code=2)
    assert "error: " in done.stderr
    assert "attentivenas_a9" in done.stderr
    (result,) = tmp_path.glob("runs/profile/imagenet/*/result.json")
    assert result.parent.name.startswith("min-")


@pytest.mark.slow
def test_a_defect_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "faulty_stage.py").write_text("def run(cfg, folder):\n    return cfg.no_such_key\n")
    done = run(tmp_path, "stage.run=faulty_stage.run", code=1)
    assert "Traceback" in done.stderr
    assert "no_such_key" in done.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_also_when_lightning_has_turned_it_into_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "interrupted_stage.py").write_text(
        "import sys\n\n\ndef run(cfg, folder):\n    try:\n        raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt:\n        sys.exit(1)\n"
    )
    done = run(tmp_path, "stage.run=interrupted_stage.run", code=130)
    assert done.stderr.strip().startswith("interrupted: nothing is kept in runs/")
    assert done.stderr.strip().endswith(" yet: the same command begins again")
