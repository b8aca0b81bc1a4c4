"""The Fréchet distance against closed forms, and that it tells the world's pictures from others."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from zoo.frechet import FEWEST, Gaussian, ShapesWorld, distance, gaussian
from zoo.shapes.draw import draw
from zoo.shapes.world import random_scene


def covariance(seed: int, size: int = 6, rank: int = 6) -> Tensor:
    root = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def of(mean: list[float], spread: list[float]) -> Gaussian:
    return Gaussian(torch.tensor(mean).double(), torch.diag(torch.tensor(spread).double() ** 2))


def test_one_dimension_is_the_difference_of_means_and_deviations() -> None:
    assert distance(of([1.0], [2.0]), of([4.0], [7.0])) == pytest.approx(3**2 + 5**2)


def test_independent_features_add_up() -> None:
    one, other = of([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), of([1.0, 1.0, 0.0], [1.0, 4.0, 0.0])
    assert distance(one, other) == pytest.approx(1 + 4 + (2 - 4) ** 2 + 3**2)


def test_it_is_the_matrix_formula() -> None:
    one = Gaussian(torch.zeros(6).double(), covariance(0))
    other = Gaussian(torch.ones(6).double(), covariance(1))
    root = scipy.linalg.sqrtm(one.covariance.numpy() @ other.covariance.numpy())
    expected = 6 + np.trace(one.covariance.numpy() + other.covariance.numpy() - 2 * root.real)
    assert distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert distance(one, other) == pytest.approx(distance(other, one), rel=1e-9)


def test_covariances_without_full_rank_are_safe() -> None:
    flat = Gaussian(torch.zeros(6).double(), covariance(2, rank=1))
    assert distance(flat, flat) == pytest.approx(0, abs=1e-6)
    assert distance(flat, Gaussian(flat.mean, flat.covariance * 4)) == pytest.approx(float(flat.covariance.trace()))


def test_a_gaussian_is_mean_and_unbiased_covariance() -> None:
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))
    found = gaussian(features)
    torch.testing.assert_close(found.mean, features.double().mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.from_numpy(np.cov(features.double().numpy().T)))
    for wrong in (torch.ones(1, 3), torch.full((4, 3), float("nan")), torch.ones(4)):
        with pytest.raises(ValueError, match="at least 2 pictures"):
            gaussian(wrong)


@pytest.fixture(scope="module")
def world() -> ShapesWorld:
    return ShapesWorld(unseen=True, pictures=512)


def pictures(count: int, seed: int, things: int | None = None) -> Tensor:
    rng = np.random.default_rng(seed)
    drawn = [draw(random_scene(rng, things or 1 + i % 2, unseen=True), rng) for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def test_it_tells_the_world_from_others(world: ShapesWorld) -> None:
    fresh = pictures(256, seed=1)
    noise = 0.1 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(0))
    own = world.distance(world.features(fresh))
    noisy = world.distance(world.features((fresh + noise).clamp(0, 1)))
    crowded = world.distance(world.features(pictures(256, seed=1, things=2)))
    blank = world.distance(world.features(torch.full_like(fresh, 0.5)))
    assert own * 1.5 < min(noisy, crowded) < max(noisy, crowded) < blank
    assert world.features(fresh[:3]).shape == (3, 48)


def test_the_same_arguments_give_the_same_world(world: ShapesWorld) -> None:
    features = world.features(pictures(FEWEST, seed=4))
    assert ShapesWorld(unseen=True, pictures=512).distance(features) == world.distance(features)


def test_what_it_cannot_judge_is_refused(world: ShapesWorld) -> None:
    with pytest.raises(ValueError, match="at least 128 pictures, got 127"):
        world.distance(torch.zeros(FEWEST - 1, 48))
    with pytest.raises(ValueError, match="64x64 RGB"):
        world.features(torch.zeros(2, 3, 32, 64))
