"""Closed-form repair of subnets on random weights: exactness, guards, independence, and the order of channels."""

import copy
import logging
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.activations import patches_of
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.links import Link, permute_hidden, repair_module
from nas_transfer.supernet.mbconv.network import MBConvBody, MBConvClassifier
from nas_transfer.supernet.mbconv.rows import FUSED, PLAIN
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.mending import match_batch_norms
from nas_transfer.supernet.regression import Ridge, fit, fit_kernels, fit_rectified, greedy_order
from nas_transfer.supernet.repair import Probes, Repairer, RepairReport, order_channels
from tests.conftest import load_supernet
from tests.supernet.exactness import cut_body, extract
from tests.supernet.repair_families import FAMILIES, Family, mbconv_supernet

SIZE = 64


def smooth_images(count: int) -> Tensor:
    return nn.functional.interpolate(torch.randn(count, 3, 9, 9), SIZE, mode="bicubic")


@pytest.fixture(scope="module")
def table() -> MBConvTable:
    """A small supernet with squeeze-and-excitation, pooled shortcuts and two kernel sizes."""
    return load_supernet("bignas_nano")


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Smooth random images in three batches."""
    torch.manual_seed(1)
    return list(smooth_images(120).split([50, 50, 20]))


@pytest.fixture(scope="module")
def supernet(table: MBConvTable, batches: list[Tensor]) -> MBConvBody:
    """A supernet with random weights whose largest arch has the statistics of the images."""
    return mbconv_supernet(table, batches)


def repairer_of(table: MBConvTable, supernet: MBConvBody, batches: list[Tensor], **options: int) -> Repairer:
    return Repairer(table, cut_body(table, supernet, table.space.largest()), batches, **options)


@pytest.fixture(scope="module")
def repairer(table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]) -> Repairer:
    return repairer_of(table, supernet, batches)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, batches: list[Tensor]) -> Family:
    return FAMILIES[request.param](batches)


@pytest.fixture(scope="module")
def family_repairer(family: Family, batches: list[Tensor]) -> Repairer:
    return Repairer(family.table, family.largest, batches)


class Repair(NamedTuple):
    """A report, and the body repaired, recalibrated on the first two batches, and as sliced."""

    report: RepairReport
    bodies: tuple[nn.Module, nn.Module, nn.Module]


@pytest.fixture(scope="module")
def repairs(family: Family, family_repairer: Repairer, batches: list[Tensor]) -> list[Repair]:
    found = []
    for cut in family.cuts:
        repaired, recalibrated = cut(), cut()
        report = family_repairer.repair(repaired)
        recalibrate_batch_norm(recalibrated, batches[:2], recalibrated)
        found.append(Repair(report, (repaired, recalibrated, cut())))
    return found


def map_errors(maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """The squared error of each map relative to the variance of the leading channels that are wanted."""
    errors = []
    for own, whole in zip(maps, wanted, strict=False):
        leading = whole[:, : own.shape[1]]
        errors.append((own - leading).square().mean() / leading.var((0, 2, 3), correction=0).mean())
    return torch.stack(errors)


def links_of(family: Family, body: nn.Module) -> list[Link]:
    return repair_module(family.table).links(body)


def test_links_compute_what_their_blocks_compute(family: Family, batches: list[Tensor]) -> None:
    for body in (family.largest, *(cut() for cut in family.cuts)):
        features = repair_module(family.table).stem(body)(batches[2])
        for link in links_of(family, body):
            joined = link.join([branch.hidden(features) for branch in link.branches], features)
            assert joined.shape[1] == link.out_channels
            features = link.block(features)
            torch.testing.assert_close(link.finish(joined), features, rtol=1e-4, atol=1e-5)
        assert torch.equal(features, body(batches[2])[-1])


def test_the_largest_arch_stays_as_it_is(family: Family, family_repairer: Repairer, batches: list[Tensor]) -> None:
    body = family.whole()
    report = family_repairer.repair(body)
    for ours, theirs in zip(body(batches[2]), family.largest(batches[2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert {block.choice for block in report.blocks} == {"original"}


@pytest.mark.slow
def test_no_block_is_worse_on_held_out_images_than_the_slice_or_its_recalibration(repairs: list[Repair]) -> None:
    choices = set()
    for repair in repairs:
        for block in repair.report.blocks:
            choices.add(block.choice)
            assert block.error == min(block.errors.values())
            assert block.error <= min(block.errors["original"], block.errors.get("recalibrated", np.inf))
            assert bool(block.penalties) == (block.choice == "repaired")
    assert "repaired" in choices


def test_no_network_is_worse_on_held_out_images_than_its_slice_or_a_recalibrated_one(
    family: Family, repairs: list[Repair], batches: list[Tensor]
) -> None:
    held = torch.cat(batches)[15::16]
    wanted = family.largest(held)
    for repair in repairs:
        errors = [map_errors(body(held), wanted).mean().item() for body in repair.bodies]
        assert errors[0] <= min(errors[1:]) * (1 + 1e-6)
        assert repair.report.error == min(repair.report.errors.values())
        found = [repair.report.errors[name] for name in (repair.report.choice, "recalibrated", "original")]
        assert errors == pytest.approx(found, rel=1e-4)


def test_repaired_feature_maps_are_nearer_to_the_largest_networks_on_unseen_images(
    family: Family, repairs: list[Repair]
) -> None:
    torch.manual_seed(2)
    images = smooth_images(30)
    wanted = family.largest(images)[:3]  # there are few rows for the last stage
    for repair in repairs:
        if repair.report.choice == "repaired":
            errors = [map_errors(body(images), wanted) for body in repair.bodies]
            assert (errors[0] < torch.minimum(errors[1], errors[2]))[:2].all()
            assert errors[0].mean() < min(errors[1].mean(), errors[2].mean())
    assert "repaired" in {repair.report.choice for repair in repairs}


@pytest.mark.slow
def test_kernels_that_are_learned_maps_of_larger_ones_are_repaired(batches: list[Tensor]) -> None:
    family = FAMILIES["once_for_all"](batches)
    body = family.cuts[-1]()
    sliced, whole = (list(net.parameters()) for net in (body, family.largest))
    pairs = [(own, all_of) for own, all_of in zip(sliced, whole, strict=True) if own.shape != all_of.shape]
    assert len(pairs) == len(links_of(family, body))
    assert not any(torch.allclose(own, all_of[:, :, 2:5, 2:5], atol=0.01) for own, all_of in pairs)
    before = [own.clone() for own, _ in pairs]
    report = Repairer(family.table, family.largest, batches).repair(body)
    assert report.choice == "repaired"
    assert report.error < 0.7 * min(report.errors["original"], report.errors["recalibrated"])
    assert sum(not torch.equal(own, kernel) for (own, _), kernel in zip(pairs, before, strict=True)) > len(pairs) / 2


def test_fused_and_plain_blocks_are_repaired(table: MBConvTable, batches: list[Tensor]) -> None:
    stages = [replace(stage, width=stage.width[-1:], depth=(1,), kernel_size=(3,)) for stage in table.stages]
    stages[0] = replace(stages[0], kind=PLAIN, depth=(1, 2))
    stages[1] = replace(stages[1], kind=FUSED, depth=(1, 2))
    stages[2] = replace(stages[2], kind=FUSED)  # with squeeze-and-excitation
    table = replace(table, stages=tuple(stages), shortcut="identity")
    few = [images[:20] for images in batches]
    body = mbconv_supernet(table, few)
    largest = cut_body(table, body, table.space.largest())
    repairer, held = Repairer(table, largest, few), torch.cat(few)[15::16]
    wanted, same = largest(held), copy.deepcopy(largest)
    assert {block.choice for block in repairer.repair(same).blocks} == {"original"}
    for ours, theirs in zip(same(held), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    repaired, recalibrated, sliced = (cut_body(table, body, table.space.smallest()) for _ in range(3))
    choices = {block.name: block.choice for block in repairer.repair(repaired).blocks}
    assert choices["mb2.0"] == choices["mb3.0"] == "repaired"
    recalibrate_batch_norm(recalibrated, few[:2], recalibrated)
    errors = [map_errors(network(held), wanted).mean() for network in (repaired, recalibrated, sliced)]
    assert errors[0] < min(errors[1:])


def test_a_slice_that_is_nearer_than_its_repair_is_kept(
    family: Family, batches: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    repairer = Repairer(family.table, family.largest, batches[2:])
    body, sliced = family.cuts[0](), family.cuts[0]()
    repairer._probes = Probes.of(sliced, repairer._probes.images)
    with caplog.at_level(logging.WARNING):
        report = repairer.repair(body)
    assert report.choice == "original"
    assert report.error == 0 < report.errors["repaired"]
    assert "the slice (original) is kept" in caplog.text
    kept = body.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in sliced.state_dict().items())


@pytest.mark.slow
def test_lost_projections_are_found_again(family: Family, family_repairer: Repairer) -> None:
    body = family.whole()
    torch.manual_seed(3)
    lost = [number for number, link in enumerate(links_of(family, body)) if link.branches][:4]
    for number in lost:
        for branch in links_of(family, body)[number].branches:
            nn.init.normal_(branch.project.conv.weight, std=0.05)
            norm = branch.project.norm
            nn.init.normal_(norm.bias if isinstance(norm, nn.BatchNorm2d) else branch.project.conv.bias)
    report = family_repairer.repair(body)
    assert [report.blocks[number].choice for number in lost] == ["repaired"] * 4
    assert max(report.blocks[number].error for number in lost) < 0.01


def test_recalibrating_a_repaired_network_changes_little(
    table: MBConvTable, supernet: MBConvBody, repairer: Repairer, batches: list[Tensor]
) -> None:
    body = cut_body(table, supernet, table.space.smallest())
    repairer.repair(body)
    before = body(batches[0])[-1]
    recalibrate_batch_norm(body, batches, body)
    difference = (body(batches[0])[-1] - before).square().mean()
    assert difference < 0.05 * before.var()


@pytest.mark.slow
def test_a_repair_does_not_depend_on_earlier_ones(family: Family, repairs: list[Repair], batches: list[Tensor]) -> None:
    repairer = Repairer(family.table, family.whole(), batches)
    for cut in reversed(family.cuts[:2]):
        body = cut()
        repairer.repair(body)
    first = repairs[0].bodies[0].state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in body.state_dict().items())


def test_permuting_hidden_channels_leaves_the_function(family: Family, batches: list[Tensor]) -> None:
    body, images = family.whole().double(), batches[2].double()
    before = body(images)
    torch.manual_seed(4)
    permuted = [
        permute_hidden(branch, torch.randperm(branch.channels))
        for link in links_of(family, body)
        for branch in link.branches
    ]
    assert any(permuted)
    changed = body.state_dict()
    assert any(not torch.equal(tensor, changed[name]) for name, tensor in family.largest.state_dict().items())
    for ours, theirs in zip(body(images), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_ordering_channels_leaves_the_function(family: Family, batches: list[Tensor]) -> None:
    body, images = family.whole(), batches[2].double()
    order_channels(family.table, body, batches)
    for ours, theirs in zip(body.double()(images), family.whole().double()(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_memory_limits_the_images_of_early_blocks_only(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    frugal = repairer_of(table, supernet, batches, memory=60 * 48 * 16 * 16 * 4)
    counts = [frugal._samples[stage].count for stage in range(7)]
    assert counts[0] < 3
    assert counts[-1] == 3
    assert len(frugal.repair(cut_body(table, supernet, table.space.smallest())).blocks) == 7
    least = repairer_of(table, supernet, batches, memory=1)
    assert [least._samples[stage].count for stage in range(7)] == [1] * 7
    assert len(least.repair(cut_body(table, supernet, table.space.smallest())).blocks) == 7


def test_too_few_rows_are_said_and_recalibrated(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    repairer = repairer_of(table, supernet, [batches[0][:12]])
    with caplog.at_level(logging.WARNING):
        report = repairer.repair(cut_body(table, supernet, table.space.smallest()))
    assert "mb7.0 has 128 channels and needs at least 256 rows, got 44" in caplog.text
    assert report.blocks[-1].choice in ("original", "recalibrated")
    assert "repaired" not in report.blocks[-1].errors


def test_one_image_or_another_family_is_refused(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        repairer_of(table, supernet, [batches[0][:1]])
    with pytest.raises(ValueError, match="at least 2 images, got none"):
        repairer_of(table, supernet, [])
    other = MagicMock(spec=["name"])
    with pytest.raises(ConfigError, match="repair_module"):
        Repairer(other, supernet, batches)


def test_the_ridge_regression_is_the_least_squares_solution_of_augmented_rows() -> None:
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(60, 8)) + 3, generator.normal(size=(60, 5)) - 1
    inputs[:, 7] = inputs[:, 6]  # a singular covariance
    penalty, prior = 1e-2, generator.normal(size=(5, 8))
    weight, bias = Ridge(*map(torch.from_numpy, (inputs, targets, prior))).solve(penalty)
    centred, wanted = inputs - inputs.mean(0), targets - targets.mean(0)
    variances = np.sum(centred**2, 0)
    root = np.diag(np.sqrt(penalty * (variances + 1e-3 * variances.mean())))
    rows = np.concatenate([centred, root])
    expected = np.linalg.lstsq(rows, np.concatenate([wanted, root @ prior.T]), rcond=None)[0].T
    np.testing.assert_allclose(weight, expected, atol=1e-10)
    np.testing.assert_allclose(bias, targets.mean(0) - expected @ inputs.mean(0), atol=1e-10)


def test_a_regression_before_a_relu_ignores_how_negative_a_sum_is() -> None:
    torch.manual_seed(0)
    inputs, true_weight, shift = torch.randn(800, 6), torch.randn(4, 6), torch.randn(800, 4)
    sums = inputs @ true_weight.T + shift
    sums = torch.where(sums < 0, -5 * torch.rand(800, 4), sums)  # what a ReLU hides
    held = torch.arange(800) % 16 == 15
    prior = torch.zeros(4, 6)
    arguments = (held, [1e-4, 1e-2], prior)
    weight, bias, penalty, difference = fit_rectified(inputs, sums - shift, shift, *arguments)
    plain = fit(inputs, sums - shift, *arguments)
    outputs = (inputs[held] @ plain[0].T + plain[1] + shift[held]).relu()
    wanted = sums[held].relu()
    assert difference.square().sum() < 0.5 * (outputs - wanted).square().sum()
    torch.testing.assert_close((inputs[held] @ weight.T + bias + shift[held]).relu() - wanted, difference)
    assert penalty in arguments[1]


def test_float32_falls_back_to_float64_and_constant_inputs_to_the_mean() -> None:
    torch.manual_seed(0)
    column = torch.randn(500, 1) + 100
    ridge = Ridge(column.expand(500, 40) * torch.linspace(1, 1000, 40), column)
    weight, bias = ridge.solve(1e-9)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    weight, bias = Ridge(torch.ones(5, 3), torch.arange(5.0)[:, None]).solve(1e-3)
    assert weight.abs().max() == 0
    assert bias.item() == 2


def test_kernels_are_the_least_squares_solutions_of_each_channel() -> None:
    torch.manual_seed(0)
    patches, targets = torch.randn(200, 3, 9, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    kernels, biases = fit_kernels(patches, targets, 1e-12)
    for channel in range(3):
        rows = np.concatenate([patches[:, channel], np.ones((200, 1))], 1)
        expected = np.linalg.lstsq(rows, targets[:, channel].numpy(), rcond=None)[0]
        np.testing.assert_allclose([*kernels[channel], biases[channel]], expected, atol=1e-6)


@pytest.mark.parametrize("same_padding", [False, True])
def test_patches_are_what_a_depthwise_convolution_reads(same_padding: bool) -> None:
    torch.manual_seed(0)
    for size, stride in ((3, 1), (5, 1), (3, 2), (5, 2)):
        layers = Layers(elastic=False, eps=1e-5, same_padding=same_padding)
        conv = layers.conv(4, 4, size, stride, depthwise=True)
        maps = torch.randn(2, 4, 9, 12)
        outputs = conv(maps)
        positions = torch.stack([torch.randperm(outputs[0, 0].numel())[:7] for _ in range(2)])
        read = torch.einsum("rck,ck->rc", patches_of(conv, maps, positions), conv.weight.flatten(1))
        expected = outputs.permute(0, 2, 3, 1).flatten(1, 2)[torch.arange(2)[:, None], positions].flatten(0, 1)
        torch.testing.assert_close(read, expected)


def test_matched_norms_of_a_head_have_the_moments_of_the_largest_networks(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    largest, smallest = table.space.largest(), table.space.smallest()
    torch.manual_seed(2)
    heads = MBConvClassifier(table, 5).eval()
    reference, head = (extract(heads, MBConvClassifier(table, 5, arch)) for arch in (largest, smallest))
    features = [[cut_body(table, supernet, arch)(images)[-1] for images in batches] for arch in (largest, smallest)]
    match_batch_norms(head, features[1], reference, features[0])
    outputs = [
        torch.cat([part.norm(part.conv(maps)).transpose(0, 1).flatten(1) for maps in inputs], 1)
        for part, inputs in zip((reference.final_expand, head.final_expand), features, strict=True)
    ]
    channels = len(outputs[1])
    torch.testing.assert_close(outputs[1].mean(1), outputs[0].mean(1)[:channels], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(outputs[1].std(1), outputs[0].std(1)[:channels], rtol=1e-3, atol=1e-3)


def test_the_order_is_nested_takes_the_best_channel_first_and_leaves_the_function(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    ordered = copy.deepcopy(supernet)
    order_channels(table, ordered, batches)
    assert not torch.equal(ordered.stages[1][0].project.conv.weight, supernet.stages[1][0].project.conv.weight)
    largest = table.space.largest()
    ordered.set_arch(largest)
    images = batches[0].double()
    for ours, theirs in zip(ordered.double()(images), cut_body(table, supernet, largest).double()(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    rows = torch.randn(300, 6) @ torch.randn(6, 6)
    covariance, weight = rows.T @ rows / 300, torch.randn(4, 6)
    order = greedy_order(covariance, weight)
    assert sorted(order.tolist()) == list(range(6))
    explained = (weight @ covariance).square().sum(0) / covariance.diagonal()
    assert order[0] == explained.argmax()
    swap = torch.tensor([3, 1, 0, 2, 5, 4])
    assert swap[greedy_order(covariance[swap][:, swap], weight[:, swap])].tolist() == order.tolist()


@pytest.mark.slow
def test_the_order_keeps_more_than_the_order_of_the_file(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    ordered = copy.deepcopy(supernet)
    order_channels(table, ordered, batches)
    narrow = table.space.from_dict({**table.space.largest().to_dict(), "expand_ratio": [1, 2, 2, 2, 2, 2, 2]})
    errors = [
        repairer_of(table, body, batches).repair(cut_body(table, body, narrow)).error for body in (ordered, supernet)
    ]  # fmt: skip
    assert errors[0] < errors[1]
