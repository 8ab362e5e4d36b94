"""Task genes: which sizes of a task a search may choose."""

from typing import Any

import pytest

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.space import SearchSpace
from nas_transfer.tasks.genes import Choices, task_genes, values_of

SIZES = {"min_size": 320, "fpn_channels": 128}
BODY = SearchSpace("tiny", (Gene("depth.a", (1, 2)), Gene("width.a", (8, 16))))


def test_the_size_of_the_task_is_the_last_choice_and_larger_ones_are_left_out() -> None:
    genes = task_genes(SIZES, {"fpn_channels": [96, 32, 128, 256], "min_size": [192]})
    assert [(gene.name, gene.choices) for gene in genes] == [("min_size", (192, 320)), ("fpn_channels", (32, 96, 128))]


@pytest.mark.parametrize("choices", [None, {}, {"min_size": None}, {"min_size": [320]}, {"min_size": [640]}])
def test_a_size_without_a_smaller_choice_is_no_gene(choices: Choices | None) -> None:
    assert task_genes(SIZES, choices) == ()
    assert BODY.extended(task_genes(SIZES, choices)) is BODY


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"fpn_chanels": [32]}, "task.build.genes must name sizes .* got 'fpn_chanels': try fpn_channels"),
        ({"min_size": []}, r"task.build.genes.min_size must be a list of integers above 0, .* got \[\]"),
        ({"min_size": [0]}, r"must be a list of integers above 0, .* got \[0\]"),
        ({"min_size": [1.5]}, r"must be a list of integers above 0, .* got \[1.5\]"),
        ({"min_size": [True]}, r"must be a list of integers above 0, .* got \[True\]"),
        ("abc", "task.build.genes must hold lists of choices by name, or be null, got 'abc'"),
        ({"min_size": 64}, "must be a list of integers above 0, .* got 64"),
        ({"min_size": "abc"}, "must be a list of integers above 0, .* got"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_genes(SIZES, choices)


def test_an_arch_file_of_the_body_means_the_largest_sizes_of_the_task() -> None:
    space = BODY.extended(task_genes(SIZES, {"min_size": [192], "fpn_channels": [32]}))
    arch = space.from_dict({"depth": [1], "width": [16]})
    assert arch.values == (1, 16, 320, 128)
    assert values_of(SIZES, arch) == SIZES
    small = space.from_dict({"depth": [1], "width": [16], "min_size": 192})
    assert values_of(SIZES, small) == {"min_size": 192, "fpn_channels": 128}
    assert space.from_dict(small.to_dict()) == small


def test_the_body_of_an_arch_is_an_arch_of_the_table() -> None:
    space = BODY.extended(task_genes(SIZES, {"min_size": [192]}))
    assert BODY.part_of(space.largest()) == BODY.largest()
    assert BODY.part_of(BODY.smallest()) == BODY.smallest()
    with pytest.raises(ArchError, match="must be of space 'tiny'"):
        BODY.part_of(Arch("other", space.names, space.largest().values))


def test_an_arch_file_with_genes_of_another_task_is_refused_in_one_sentence() -> None:
    with pytest.raises(ArchError, match=r"unknown: \['min_size'\]; the groups are .*of another task"):
        BODY.from_dict({"depth": [1], "width": [16], "min_size": 192})
