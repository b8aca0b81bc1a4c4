"""Temporal features compared: cosines and mismatches by hand and against slow loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quant.metrics import temporal_cosines, temporal_mismatches


def features(seed: int, noise: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    walk = {name: torch.randn(9, width, generator=generator).cumsum(dim=0) for name, width in (("a", 5), ("b", 12))}
    return {name: rows + noise * torch.randn(rows.shape, generator=generator) for name, rows in walk.items()}


def test_against_slow_loops() -> None:
    truth, quantized = features(0), features(0, noise=0.7)
    cosines, wrong = temporal_cosines(quantized, truth), temporal_mismatches(quantized, truth)
    for name in truth:
        for k in range(9):
            every = [float(functional.cosine_similarity(quantized[name][k], f, dim=0)) for f in truth[name]]
            assert float(cosines[name][k]) == pytest.approx(every[k], abs=1e-6)
            assert bool(wrong[name][k]) == (max(range(9), key=every.__getitem__) != k)
    rate = torch.cat([*wrong.values()]).double().mean()
    assert 0.05 < float(rate) < 0.95, "the case must show both"


def test_equal_features_match_whatever_their_size() -> None:
    truth = features(1)
    scaled = {name: rows * 3 for name, rows in truth.items()}
    assert torch.cat([*temporal_cosines(scaled, truth).values()]).tolist() == pytest.approx([1.0] * 18)
    assert not torch.cat([*temporal_mismatches(scaled, truth).values()]).any()


def test_steps_that_float_cannot_tell_apart_do_not_count() -> None:
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    same = {"a": row.repeat(7, 1)}
    assert not temporal_mismatches({"a": row.repeat(7, 1) * 0.3}, same)["a"].any()


def test_zero_rows() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert temporal_cosines({"a": zero}, {"a": zero})["a"].tolist() == [1.0]
    assert temporal_cosines({"a": zero}, {"a": one})["a"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("quantized", "truth", "text"),
    [
        ({"a": torch.ones(2, 3)}, {"b": torch.ones(2, 3)}, "cannot be compared"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 3)}, "cannot be compared"),
        ({}, {}, "cannot be compared"),
        ({"a": torch.ones(2, 3, 1)}, {"a": torch.ones(2, 3, 1)}, "steps, width"),
        ({"a": torch.full((2, 3), float("nan"))}, {"a": torch.ones(2, 3)}, "must be finite"),
    ],
)
def test_what_cannot_be_compared(quantized: dict[str, Tensor], truth: dict[str, Tensor], text: str) -> None:
    for compare in (temporal_cosines, temporal_mismatches):
        with pytest.raises(ValueError, match=text):
            compare(quantized, truth)
