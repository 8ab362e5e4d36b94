import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from nas_transfer.paths import conf_dir

CONF = conf_dir() / "data"


def targets(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The data module and every record in it."""
    yield node
    for child in node.values():
        if isinstance(child, dict):
            yield from targets(child)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_file_gives_exactly_the_arguments_of_its_classes(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 40
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = OmegaConf.to_container(compose(path.stem), resolve=False)
    assert isinstance(given, dict)
    for node in targets(given):  # type: ignore[arg-type]
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        supplied_by_caller = {"root"} if node.get("_partial_") else set()
        assert {key for key in node if not key.startswith("_")} == set(parameters) - supplied_by_caller
        assert all(parameter.default is inspect.Parameter.empty for parameter in parameters.values())
