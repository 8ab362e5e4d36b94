"""The wheel holds the configuration and works in a folder without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.nightly
def test_the_wheel_carries_its_configuration_and_runs_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        assert (site / "nas_transfer/conf" / path.relative_to(REPOSITORY / "conf")).is_file()
    assert (site / "nas_transfer/report/page.html.j2").is_file()
    assert (site / "nas_transfer/py.typed").is_file()
    arguments = ["stage=profile", "task=imagenet", "supernet=bignas", "arch=attentivenas_a1"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    elsewhere = subprocess.run(
        [sys.executable, "-m", "nas_transfer", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr
    assert "total 279.239" in elsewhere.stdout
    where = [sys.executable, "-c", "import nas_transfer; print(nas_transfer.__file__)"]
    assert str(site) in subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True).stdout
