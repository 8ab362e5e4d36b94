"""The modules in docs/_ext, which write the generated pages."""

import importlib.util
import sys
from functools import cache
from types import ModuleType

from tests.conftest import REPOSITORY

EXTENSIONS = REPOSITORY / "docs" / "_ext"


@cache
def extension(name: str) -> ModuleType:
    """A module of docs/_ext."""
    if str(EXTENSIONS) not in sys.path:
        sys.path.append(str(EXTENSIONS))
    spec = importlib.util.spec_from_file_location(name, EXTENSIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@cache
def known_keys() -> frozenset[str]:
    """Every key of the configuration, the keys above it, and the groups."""
    configuration = extension("config_reference").read_configuration()
    keys = {key.path for files in configuration.values() for file in files for key in file.keys}
    above = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
    return frozenset(keys | above | set(configuration))
