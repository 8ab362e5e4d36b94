"""What a check is given: where it runs, how large it may be, and the commands of the program.

Nothing here imports torch before a check runs.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas_transfer.supernet.protocol import SupernetTable


class CommandError(Exception):
    """A command of the program failed."""


@dataclass(frozen=True)
class Context:
    """Where a check runs.

    Attributes:
        folder: for all files, the working directory of the checks; it is shared by all checks.
        tiny: whether networks are smaller and trainings shorter.
    """

    folder: Path
    tiny: bool

    @cached_property
    def on_gpu(self) -> bool:
        """Whether there is a GPU that torch can use."""
        import torch

        return torch.cuda.is_available()

    @cached_property
    def device(self) -> torch.device:
        """The GPU, or the CPU where there is none."""
        import torch

        return torch.device("cuda" if self.on_gpu else "cpu")

    def machine(self) -> dict[str, str]:
        """What the checks run on, for people."""
        import torch

        import nas_transfer

        facts = {"device": f"CPU ({platform.machine()}): torch finds no GPU, so everything runs on the CPU"}
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(self.device)
            facts = {"device": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", "driver": _driver()}
        versions = f"nas_transfer {nas_transfer.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}"
        return {**facts, "versions": f"{versions}, Python {platform.python_version()}", "size": self.size}

    @property
    def size(self) -> str:
        """The size of the checks in words."""
        return "tiny" if self.tiny else "full"

    def table(self, supernet: str) -> SupernetTable:
        """The table of a supernet in conf/supernet."""
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        from nas_transfer.paths import conf_dir

        return instantiate(OmegaConf.load(conf_dir() / "supernet" / f"{supernet}.yaml"))

    def synchronise(self) -> None:
        """Wait until the GPU has done its work."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def release_memory(self) -> None:
        """Give the GPU's unused memory back."""
        import torch

        if self.on_gpu:
            torch.cuda.empty_cache()

    def peak_mib(self) -> float | None:
        """Most memory of the GPU that tensors took since the last call, in MiB; None without a GPU."""
        import torch

        if not self.on_gpu:
            return None
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak

    # Commands

    def command(self, *arguments: str) -> float:
        """Run a command of the program in this process; returns its seconds.

        A run that an earlier check has finished is not repeated.

        Raises:
            CommandError: it failed, with its last line.
        """
        from hydra.core.global_hydra import GlobalHydra

        from nas_transfer.cli import main

        GlobalHydra.instance().clear()
        path = self.folder / f"command_{time.monotonic_ns()}.txt"
        before, start = sys.argv, time.monotonic()
        sys.argv = ["nas_transfer", *arguments]
        try:
            with path.open("w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                main()
        except SystemExit as error:
            if error.code not in (None, 0):
                raise CommandError(f"{' '.join(arguments)}: {_last_line(path)}") from error
        finally:
            sys.argv = before
            print(f"$ python -m nas_transfer {' '.join(arguments)}\n{path.read_text()}", flush=True)
        return time.monotonic() - start

    def start_command(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command in a process of its own."""
        return subprocess.Popen([sys.executable, "-m", "nas_transfer", *arguments], cwd=self.folder)

    def run_folder(self, stage: str, task: str, name: str) -> Path:
        """The folder of a command's run."""
        return self.folder / "runs" / stage / task / name


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as such and not as TF32, which GPUs use for convolutions by default."""
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def count_convolutions() -> Iterator[Counter[str]]:
    """Count the convolutions that run in this process by kind of device, to find work that was left to the CPU."""
    from torch import nn
    from torch.nn.modules.module import register_module_forward_pre_hook

    counts: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            counts[inputs[0].device.type] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def _last_line(path: Path) -> str:
    return next((line for line in reversed(path.read_text().splitlines()) if line.strip()), "no output")


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "unknown"
