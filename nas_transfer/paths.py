"""Where the configuration lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

from nas_transfer.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder of ``config.yaml`` and its groups; ConfigError if an installation lost it."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"expected conf/config.yaml in or beside {PACKAGE}, got neither: install the package again")
