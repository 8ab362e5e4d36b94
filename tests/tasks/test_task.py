"""What holds for a task of any kind."""

import pytest

from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.task import Task


def test_a_task_without_one_of_the_contracts_methods_is_refused_by_the_methods_name() -> None:
    incomplete = type("Incomplete", (PoseTask,), {"deployed": Task.deployed})
    with pytest.raises(TypeError, match=r"Incomplete.*deployed"):
        incomplete()
