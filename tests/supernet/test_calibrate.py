"""Recalibrated BatchNorm statistics against moments computed over all images at once."""

import copy

import pytest
import torch
from torch import nn

from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.mbconv.network import MBConvBody
from tests.conftest import load_supernet


def test_the_first_norms_statistics_are_the_moments_over_all_elements_whatever_the_batches() -> None:
    torch.manual_seed(0)
    table = load_supernet("bignas_nano")
    body = MBConvBody(table, table.space.smallest())
    images = torch.randn(7, 3, 32, 32) * torch.linspace(0.5, 2.0, 7)[:, None, None, None]
    assert recalibrate_batch_norm(body, images.split([3, 2, 2]), body) == 3
    features = body.first_conv.conv(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(body.first_conv.norm.running_mean, features.mean(1))
    torch.testing.assert_close(body.first_conv.norm.running_var, features.var(1, unbiased=False))


def test_on_one_batch_eval_mode_equals_training_mode() -> None:
    torch.manual_seed(0)
    table = load_supernet("bignas_nano")
    body = MBConvBody(table, table.space.smallest()).double()
    images = torch.randn(8, 3, 64, 64).double()
    recalibrate_batch_norm(body, [images], body)
    with torch.no_grad():
        for ours, theirs in zip(body.eval()(images), copy.deepcopy(body).train()(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_dropout_stays_off_and_modes_and_momenta_come_back() -> None:
    network = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm2d(2, momentum=0.3)).train()
    recalibrate_batch_norm(network, [torch.ones(2, 2, 4, 4)], network)
    norm = network[1]
    assert norm.running_mean.tolist() == [1.0, 1.0]  # dropout of 1.0 would have made it 0
    assert (network[0].training, norm.training, norm.momentum) == (True, True, 0.3)


def test_a_network_without_batch_norm_is_not_run() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).train()
    unread = iter([torch.zeros(1, 3, 2, 2)])
    assert recalibrate_batch_norm(network, unread, network) == 0
    assert next(unread).shape == (1, 3, 2, 2)
    assert network.training


def test_no_batch_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate_batch_norm(nn.BatchNorm2d(2), [], lambda batch: None)
