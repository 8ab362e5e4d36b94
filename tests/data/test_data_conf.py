import importlib
import inspect
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_file_gives_exactly_the_arguments_of_its_class(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 40
    given = yaml.safe_load(text)
    for part in (given, given["draw"]):
        if part is None:
            continue
        module, name = part["_target_"].rsplit(".", 1)
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        supplied_by_caller = {"root"} if part.get("_partial_") else set()
        assert {key for key in part if not key.startswith("_")} == set(parameters) - supplied_by_caller
        assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())
