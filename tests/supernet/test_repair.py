"""Closed-form repair of subnets on random weights: exactness, guards, independence, and the order of channels."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch
from nas_transfer.supernet.activations import patches_of
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.mbconv.network import MBConvBody, MBConvClassifier
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.mending import match_batch_norms
from nas_transfer.supernet.regression import Ridge, fit_kernels, greedy_order
from nas_transfer.supernet.repair import Repairer, order_channels
from tests.conftest import load_supernet

SIZE = 64


@pytest.fixture(scope="module")
def table() -> MBConvTable:
    """A small supernet with squeeze-and-excitation, pooled shortcuts and two kernel sizes."""
    return load_supernet("bignas_nano")


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Smooth random images in three batches."""
    torch.manual_seed(1)
    images = nn.functional.interpolate(torch.randn(120, 3, 9, 9), SIZE, mode="bicubic")
    return list(images.split([50, 50, 20]))


@pytest.fixture(scope="module")
def supernet(table: MBConvTable, batches: list[Tensor]) -> MBConvBody:
    """A supernet with random weights whose largest arch has the statistics of the images."""
    torch.manual_seed(0)
    body = MBConvBody(table)
    largest = body.extract(table.space.largest())
    for module in largest.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    recalibrate_batch_norm(largest, batches, largest)
    body.load_state_dict(largest.state_dict(), strict=False)  # a supernet has more shortcuts
    return body.eval()


def repairer_of(table: MBConvTable, supernet: MBConvBody, batches: list[Tensor], **options: int) -> Repairer:
    return Repairer(table, supernet.extract(table.space.largest()), batches, **options)


@pytest.fixture(scope="module")
def repairer(table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]) -> Repairer:
    return repairer_of(table, supernet, batches)


def archs_of(table: MBConvTable) -> list[Arch]:
    generator = np.random.default_rng(0)
    return [table.space.smallest(), *(table.space.sample(generator) for _ in range(3))]


def test_the_largest_arch_stays_as_it_is(
    table: MBConvTable, supernet: MBConvBody, repairer: Repairer, batches: list[Tensor]
) -> None:
    body = supernet.extract(table.space.largest())
    before = body(batches[0])
    report = repairer.repair(body)
    for ours, theirs in zip(body(batches[0]), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert {block.choice for block in report.blocks} == {"original"}


def test_no_block_is_worse_on_held_out_images_than_the_recalibrated_slice(
    table: MBConvTable, supernet: MBConvBody, repairer: Repairer
) -> None:
    choices = set()
    for arch in archs_of(table):
        report = repairer.repair(supernet.extract(arch))
        choices |= {block.choice for block in report.blocks}
        for block in report.blocks:
            assert block.error == min(block.errors.values())
            assert block.error <= block.errors.get("recalibrated", np.inf)
            assert (block.penalty is None) == (block.choice != "repaired")
    assert "repaired" in choices


def test_a_repaired_network_is_nearer_to_the_largest_than_a_recalibrated_one(
    table: MBConvTable, supernet: MBConvBody, repairer: Repairer, batches: list[Tensor]
) -> None:
    wanted = supernet.extract(table.space.largest())(batches[0])[1]
    for arch in archs_of(table):
        repaired, recalibrated = supernet.extract(arch), supernet.extract(arch)
        repairer.repair(repaired)
        recalibrate_batch_norm(recalibrated, batches, recalibrated)
        errors = [
            (body(batches[0])[1] - wanted[:, : arch["width.mb3"]]).square().mean() for body in (repaired, recalibrated)
        ]
        assert errors[0] < errors[1]


def test_recalibrating_a_repaired_network_changes_little(
    table: MBConvTable, supernet: MBConvBody, repairer: Repairer, batches: list[Tensor]
) -> None:
    body = supernet.extract(table.space.smallest())
    repairer.repair(body)
    before = body(batches[0])[-1]
    recalibrate_batch_norm(body, batches, body)
    difference = (body(batches[0])[-1] - before).square().mean()
    assert difference < 0.05 * before.var()


def test_a_repair_does_not_depend_on_earlier_ones(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    first, second, *_ = archs_of(table)
    states = []
    for order in ([first], [second, first]):
        repairer = repairer_of(table, supernet, batches)
        for arch in order:
            body = supernet.extract(arch)
            repairer.repair(body)
        states.append(body.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_memory_limits_the_images_of_early_blocks_only(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    frugal = repairer_of(table, supernet, batches, memory=60 * 48 * 16 * 16 * 4)
    counts = [frugal._samples[stage].count for stage in range(7)]
    assert counts[0] < 3
    assert counts[-1] == 3
    assert len(frugal.repair(supernet.extract(table.space.smallest())).blocks) == 7


def test_too_few_rows_are_said_and_recalibrated(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    repairer = repairer_of(table, supernet, [batches[0][:12]])
    with caplog.at_level(logging.WARNING):
        report = repairer.repair(supernet.extract(table.space.smallest()))
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
    other = load_supernet("detnas_nano")
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
    reference, head = heads.extract(largest), heads.extract(smallest)
    features = [[supernet.extract(arch)(images)[-1] for images in batches] for arch in (largest, smallest)]
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
    for ours, theirs in zip(ordered.double()(images), supernet.extract(largest).double()(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    rows = torch.randn(300, 6) @ torch.randn(6, 6)
    covariance, weight = rows.T @ rows / 300, torch.randn(4, 6)
    order = greedy_order(covariance, weight)
    assert sorted(order.tolist()) == list(range(6))
    explained = (weight @ covariance).square().sum(0) / covariance.diagonal()
    assert order[0] == explained.argmax()
    swap = torch.tensor([3, 1, 0, 2, 5, 4])
    assert swap[greedy_order(covariance[swap][:, swap], weight[:, swap])].tolist() == order.tolist()


def test_the_order_keeps_more_than_the_order_of_the_file(
    table: MBConvTable, supernet: MBConvBody, batches: list[Tensor]
) -> None:
    ordered = copy.deepcopy(supernet)
    order_channels(table, ordered, batches)
    narrow = table.space.from_dict({**table.space.largest().to_dict(), "expand_ratio": [1, 2, 2, 2, 2, 2, 2]})
    errors = [
        repairer_of(table, body, batches).repair(body.extract(narrow)).error for body in (ordered, supernet)
    ]  # fmt: skip
    assert errors[0] < errors[1]
