"""Heatmaps against what a Gaussian is: encoded and decoded positions, mirrored maps, similarities, duplicates."""

import math

import numpy as np
import pytest
import torch

from nas_transfer.tasks.heatmaps import (
    decode_heatmaps,
    encode_heatmaps,
    mirror_heatmaps,
    object_keypoint_similarity,
    suppress_duplicates,
)


@pytest.mark.parametrize(("stride", "sigma"), [(4, 2.0), (4, 1.0), (2, 1.5)])
def test_any_position_is_found_again_to_a_hundredth_of_a_pixel(stride: int, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(40, 7, 2, generator=generator, dtype=torch.float64) * torch.tensor([95.0, 127.0])
    targets, weights = encode_heatmaps(points, torch.ones(40, 7), (128 // stride, 96 // stride), stride, sigma)
    found, scores = decode_heatmaps(targets, stride, sigma)
    assert weights.all()
    assert (found - points).abs().max() < 0.01
    # Half a cell off in both directions the highest cell of a Gaussian is exp(-0.25 / sigma^2).
    assert scores.min() >= math.exp(-0.25 / sigma**2) - 1e-9
    assert scores.max() <= 1


def test_the_decoding_is_better_than_the_highest_cell_by_far_under_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 16 + torch.rand(50, 4, 2, generator=generator, dtype=torch.float64) * torch.tensor([32.0, 64.0])
    targets, _ = encode_heatmaps(points, torch.ones(50, 4), (24, 16), 4, 1.0)
    noisy = 0.7 * targets + 0.02 * torch.randn(targets.shape, generator=generator, dtype=torch.float64)
    found, _ = decode_heatmaps(noisy, 4, 1.0)
    best = noisy.flatten(2).argmax(2)
    cells = torch.stack([best % 16, best // 16], -1) * 4 + 1.5
    assert (found - points).norm(dim=-1).mean() < 0.4 * (cells - points).norm(dim=-1).mean()


def test_a_target_is_the_gaussian_of_the_paper_and_weightless_off_the_map_or_unlabelled() -> None:
    # Cell h covers the pixels 4 h .. 4 h + 3: the centre of cell (3, 5) is pixel (13.5, 21.5).
    points = torch.tensor([[[13.5, 21.5], [13.5, 21.5], [-40.0, 8.0], [-3.0, 8.0]]], dtype=torch.float64)
    visible = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    targets, weights = encode_heatmaps(points, visible, (24, 16), 4, 2.0)
    assert weights.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    for row in range(24):
        for column in range(16):
            expected = math.exp(-((row - 5) ** 2 + (column - 3) ** 2) / 8)
            assert targets[0, 0, row, column].item() == pytest.approx(expected, abs=1e-12)


def test_a_flat_map_gives_a_finite_position_of_no_certainty() -> None:
    flat, scores = decode_heatmaps(torch.zeros(1, 3, 24, 16), 4, 1.0)
    assert torch.isfinite(flat).all()
    assert scores.eq(0).all()


def test_the_map_of_a_mirrored_image_is_mirrored_exactly() -> None:
    points = torch.tensor([[[20.25, 30.0], [41.5, 33.0], [31.5, 10.0]]], dtype=torch.float64)
    maps, _ = encode_heatmaps(points, torch.ones(1, 3), (24, 16), 4, 1.0)
    mirrored = points.clone()
    mirrored[..., 0] = 63 - points[..., 0]
    mirrored = mirrored[:, [1, 0, 2]]  # what was left is now right
    others, _ = encode_heatmaps(mirrored, torch.ones(1, 3), (24, 16), 4, 1.0)
    torch.testing.assert_close(mirror_heatmaps(others, [[0, 1]]), maps, rtol=0, atol=1e-12)


def test_similarity_is_cocos_formula() -> None:
    rng = np.random.default_rng(0)
    points, others, sigmas, area = (
        rng.uniform(0, 50, (5, 2)),
        rng.uniform(0, 50, (3, 5, 2)),
        rng.uniform(0.1, 1, 5),
        900,
    )
    found = object_keypoint_similarity(points, others, area, sigmas)
    for k in range(3):
        terms = [
            math.exp(-(math.dist(points[j], others[k, j]) ** 2) / (2 * area * (2 * sigmas[j]) ** 2)) for j in range(5)
        ]
        assert found[k] == pytest.approx(sum(terms) / 5, abs=1e-9)


def test_of_two_similar_persons_the_surer_one_stays() -> None:
    person = np.random.default_rng(0).uniform(0, 50, (6, 2))
    points = np.stack([person + 0.1, person, person + 40.0, person + 0.2])
    kept = suppress_duplicates(points, np.full(4, 900.0), np.array([0.5, 0.9, 0.4, 0.1]), np.full(6, 0.08), 0.9)
    assert kept == [1, 2]
    assert suppress_duplicates(points, np.full(4, 900.0), np.ones(4), np.full(6, 0.08), 1.0) == [0, 1, 2, 3]
