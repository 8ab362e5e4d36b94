"""What made a run: installed versions and the revision of a checkout."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from nas_transfer.runs.versions import PACKAGES, git_revision, versions


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_versions_are_the_installed_ones_and_nothing_is_imported_for_them() -> None:
    assert versions()["torch"] == metadata.version("torch")
    assert set(versions()) == set(PACKAGES)
    code = "import sys; from nas_transfer.runs.versions import versions; versions(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_git_revision_is_that_of_the_checkout_and_says_when_it_was_changed(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    revision = git_revision(tmp_path)
    assert revision is not None
    assert head.startswith(revision)
    (tmp_path / "code.py").write_text("2\n")
    assert git_revision(tmp_path) == f"{revision}-dirty"


def test_a_package_installed_below_another_checkout_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    package = tmp_path / ".venv" / "nas_transfer"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1\n")
    assert git_revision(package) is None
