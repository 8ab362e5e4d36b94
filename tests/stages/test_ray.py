"""Through Ray: workers on a cluster of two nodes are killed, come back, and lose nothing."""

import importlib.util
import re
import subprocess
import sys

import pytest

from nas_transfer.errors import ConfigError
from nas_transfer.stages.common.ray_jobs import RayLauncher
from tests.conftest import REPOSITORY
from tests.guard import HANG_SECONDS


def test_a_launcher_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    launcher = RayLauncher(address=None, num_cpus=1, num_gpus=0, max_retries=0, options={})
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'nas-transfer\[ray\]'"):
        launcher._connected()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]")
def test_workers_on_two_nodes_that_are_killed_lose_nothing_and_one_that_joins_gets_work() -> None:
    script = [sys.executable, "scripts/kill_workers.py", "search", "--launcher", "ray"]
    done = subprocess.run(
        [*script, "--trials", "12", "--workers", "3", "--kills", "3", "--pause", "0.5"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 workers: 3 kills" in done.stdout
    assert "{'scored': 12}" in done.stdout
    assert "0 lost, 0 told twice, front equal to the files" in done.stdout
    joined = re.search(r"1 commands added workers, which evaluated (\d+) trials", done.stdout)
    assert joined is not None
    assert int(joined[1]) > 0
