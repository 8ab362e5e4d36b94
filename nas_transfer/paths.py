"""The folder of the configuration: beside the package in a checkout, inside the package in a wheel."""

from pathlib import Path

from nas_transfer.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder of ``config.yaml`` and its groups.

    Raises:
        ConfigError: the installation has no configuration.
    """
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"conf/config.yaml must be in or beside {PACKAGE}, got none: install the package again")
