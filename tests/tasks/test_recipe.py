"""Schedules and arch sampling against their definitions."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nas_transfer.errors import ConfigError
from nas_transfer.tasks.recipe import ArchSampling, Recipe
from tests.conftest import load_supernet


def recipe(**changes: object) -> Recipe:
    settings: dict[str, object] = {
        "optimizer": "sgd", "lr": 0.1, "lr_batch": None, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine",
        "final_factor": 0.0, "milestones": (), "warmup_steps": 0, "warmup_factor": 0.1, "clip_norm": None,
        "accumulate": 1, "drop_path": 0.0,
    }  # fmt: skip
    return Recipe(**(settings | changes))  # type: ignore[arg-type]


def no_costs(archs: object) -> list[float]:
    raise AssertionError("asked for costs that nothing depends on")


def test_archs_may_be_uniform_in_cost_instead_of_in_the_space() -> None:
    space = load_supernet("bignas_nano").space
    sampling = ArchSampling("single_path", 2, (200.0, 1000.0, 100.0), 0.0)

    def sum_of_widths(archs: list) -> list[float]:
        return [float(sum(arch.group("width"))) for arch in archs]

    drawn = [sum_of_widths(sampling.draw(space, 0, step, sum_of_widths))[0] for step in range(300)]
    plain = [float(sum(space.sample(np.random.default_rng(step)).group("width"))) for step in range(300)]
    low, high = min(plain), max(plain)
    assert np.mean(drawn) == pytest.approx(np.clip(np.arange(200, 1001, 100), low, high).mean(), abs=0.2 * (high - low))
    assert np.std(drawn) > 1.3 * np.std(plain)
    assert sampling.draw(space, 0, 3, sum_of_widths) == sampling.draw(space, 0, 3, sum_of_widths)
    with pytest.raises(ConfigError, match=r"\[low, high, step\]"):
        ArchSampling("single_path", 2, (300.0, 200.0, 10.0), 0.0)


def test_linear_falls_evenly() -> None:
    assert [recipe(schedule="linear").lr_factor(step, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_cosine_falls_from_one_to_zero() -> None:
    factors = [recipe().lr_factor(step, 100) for step in range(101)]
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert factors[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_poly_falls_with_the_power_of_nine_tenths_to_its_final_factor() -> None:
    factors = [recipe(schedule="poly", final_factor=0.01).lr_factor(step, 100) for step in (0, 40, 100)]
    assert factors == pytest.approx([1.0, 0.01 + 0.99 * 0.6**0.9, 0.01])


def test_the_learning_rate_follows_the_total_batch() -> None:
    assert recipe(lr=0.02, lr_batch=16).for_total_batch(2).lr == pytest.approx(0.0025)
    assert recipe(lr=0.02, lr_batch=16).for_total_batch(16) == recipe(lr=0.02, lr_batch=16)
    assert recipe(lr=0.02).for_total_batch(2).lr == 0.02


def test_steps_decay_at_the_milestones_and_warm_up_is_linear() -> None:
    stepped = recipe(schedule="step", milestones=(0.6, 0.8), warmup_steps=9, warmup_factor=0.1)
    factors = [stepped.lr_factor(step, 100) for step in range(100)]
    assert factors[:9] == pytest.approx([0.1 + 0.9 * (step + 1) / 10 for step in range(9)])
    assert (factors[9], factors[59], factors[60], factors[79], factors[80]) == pytest.approx((1, 1, 0.1, 0.1, 0.01))


def test_warm_up_takes_at_most_a_tenth_of_a_short_run() -> None:
    assert recipe(schedule="constant", warmup_steps=500).lr_factor(2, 20) == 1.0


def test_norms_and_biases_are_not_decayed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed, kept = recipe().build_optimizer(network).param_groups
    assert {id(p) for p in decayed["params"]} == {id(network[0].weight), id(network[3].weight)}
    assert len(kept["params"]) == 4
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-4, 0.0)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_fused_updates_of_a_network_in_channels_last_are_those_of_torch_by_default(optimizer: str) -> None:
    """The fused kernels are wrong where a gradient has another memory format than its parameter."""

    def trained(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 2, 1)]
        network = nn.Sequential(*layers).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        built = recipe(optimizer=optimizer).build_optimizer(network, fused=fused)
        assert bool(built.defaults["fused"]) is fused
        for _ in range(3):
            network(torch.rand(2, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
            built.step()
            built.zero_grad(set_to_none=True)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_parameters_may_get_their_first_gradient_later_than_others(optimizer: str) -> None:
    network = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    built = recipe(optimizer=optimizer).build_optimizer(network, fused=True)
    before = [layer.weight.clone() for layer in network]
    for layer in network:
        layer(torch.ones(1, 2)).sum().backward()
        built.step()
        built.zero_grad(set_to_none=True)
    assert not any(torch.equal(layer.weight, old) for layer, old in zip(network, before, strict=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"optimizer": "rmsprop"}, "task.recipe.optimizer"), ({"milestones": (8,)}, "task.recipe.milestones"),
     ({"lr": 0.0}, "task.recipe.lr"), ({"lr_batch": 0}, "task.recipe.lr_batch"),
     ({"drop_path": 1.0}, "task.recipe.drop_path"),
     ({"accumulate": 0}, "task.recipe.accumulate"), ({"schedule": "plateau"}, "task.recipe.schedule")],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        recipe(**changes)


def test_a_sandwich_holds_the_largest_first_and_the_smallest_last() -> None:
    space = load_supernet("bignas_nano").space
    sampling = ArchSampling("sandwich", 2, None, 1.0)
    archs = sampling.draw(space, 1, 5, no_costs)
    assert len(archs) == sampling.archs_per_step(space) == 4
    assert (archs[0], archs[-1]) == (space.largest(), space.smallest())
    assert archs == sampling.draw(space, 1, 5, no_costs)
    assert archs[1:3] != sampling.draw(space, 1, 6, no_costs)[1:3]
    assert archs[1:3] != sampling.draw(space, 2, 5, no_costs)[1:3]


def test_the_largest_alone_is_what_a_sandwich_is_compared_with() -> None:
    space = load_supernet("bignas_nano").space
    sampling = ArchSampling("largest", 2, None, 1.0)
    assert sampling.draw(space, 0, 5, no_costs) == [space.largest()]
    assert sampling.archs_per_step(space) == 1


def test_single_path_draws_every_choice_of_every_gene_about_equally_often() -> None:
    space = load_supernet("bignas_nano").space
    sampling = ArchSampling("single_path", 2, None, 0.0)
    drawn = [sampling.draw(space, 0, step, no_costs) for step in range(600)]
    assert all(len(archs) == 1 for archs in drawn)
    for gene in space.genes:
        counts = torch.tensor([sum(archs[0][gene.name] == choice for archs in drawn) for choice in gene.choices])
        expected = 600 / len(gene.choices)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
