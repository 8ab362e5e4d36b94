"""Public classification networks of timm and torchvision as supernets: their modules are read into a family's table.

What is exported here imports torch and the library when a table is built, not before.
"""

from __future__ import annotations

from nas_transfer.supernet.protocol import SupernetTable


def timm_table(model: str) -> SupernetTable:
    """The table of a model of timm, whose largest arch is the model.

    Args:
        model: a name in `timm.list_models`, optionally with the tag of its weights: ``resnet18``,
            ``resnet50.a1_in1k``.

    Raises:
        ConfigError: timm is not installed or has no such model, or a module cannot be read.
    """
    from nas_transfer.supernet.public.reading import read_net

    return read_net("timm", model).table


def torchvision_table(model: str) -> SupernetTable:
    """The table of a classification model of torchvision, whose largest arch is the model.

    Args:
        model: a name in ``torchvision.models``, such as ``resnet50``.

    Raises:
        ConfigError: torchvision has no such model, or a module cannot be read.
    """
    from nas_transfer.supernet.public.reading import read_net

    return read_net("torchvision", model).table
