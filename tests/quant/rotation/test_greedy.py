"""Greedy rotations: orthogonal, as published step by step, lower peaks; zigzag gives every block its share."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.rotation import greedy as module
from quant.rotation.greedy import Blocks, greedy, greedy_block, matrix, zigzag
from quant.rotation.hadamard import hadamard


def samples(rows: int, width: int, seed: int = 0) -> Tensor:
    """Normal numbers [rows, width] in which channel 5 is far larger than the others, and one more has two spikes."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    x[:, 5] *= 40
    x[:2, width - 2] = 150
    return x


def peak(x: Tensor) -> float:
    return float(x.max() - x.min())


def assert_orthogonal(square: Tensor) -> None:
    assert square.dtype == torch.float32
    exact = square.double()
    torch.testing.assert_close(exact @ exact.T, torch.eye(len(square)).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 24, 64])
def test_blocks_are_orthogonal_and_lower_the_peak(size: int) -> None:
    x = samples(200, 2 * 3 * 64).reshape(-1, size)
    block = greedy_block(x, seed=0)
    assert_orthogonal(block)
    assert peak(x @ block) <= peak(x)
    if size >= 24:
        assert peak(x @ block) < 0.5 * peak(x)


def test_the_published_steps_by_an_independent_computation() -> None:
    size, steps, seed = 8, 20, 3
    x = samples(50, 16)
    normal = np.full(size, -1 / np.sqrt(size))
    normal[0] += 1
    reflection = np.eye(size) - 2 * np.outer(normal, normal) / (normal @ normal)
    np.testing.assert_allclose(reflection[:, 0], 1 / np.sqrt(size))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64).numpy()
    behind = np.eye(size)
    behind[1:, 1:] = np.linalg.qr(drawn)[0]
    base = reflection @ behind

    v = x.double().numpy().reshape(-1, size)
    products, peaks = [np.eye(size)], [np.ptp(v)]
    for _ in range(steps):
        place = int(v.argmax()) if v.max() > -v.min() else int(v.argmin())
        column = place % size
        swap = np.eye(size)
        swap[[0, column], :] = swap[[column, 0], :]
        factor = swap @ base @ swap
        v = v @ factor
        products.append(products[-1] @ factor)
        peaks.append(np.ptp(v))
    best = int(np.argmin(peaks))
    assert best > 0
    found = greedy_block(x.reshape(-1, size), steps, seed=seed)
    np.testing.assert_allclose(found.numpy(), products[best], atol=1e-6)


def test_more_steps_are_never_worse() -> None:
    x = samples(64, 32).double()
    peaks = [peak(x @ greedy_block(x, steps, seed=1).double()) for steps in (0, 1, 4, 16, 64, 256)]
    assert peaks[0] == peak(x)
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(peaks)), peaks


def test_rotations_are_those_of_the_seed_whatever_was_drawn_before() -> None:
    x = samples(64, 64)
    first = greedy(x, 16, 7)
    torch.manual_seed(1)
    torch.rand(3)
    again, other = greedy(x, 16, 7), greedy(x, 16, 8)
    assert torch.equal(matrix(first, 64), matrix(again, 64))
    assert not torch.equal(first.first, other.first)
    assert first.second is not None
    assert not torch.equal(first.first, first.second)


def test_what_no_rotation_betters_stays() -> None:
    assert torch.equal(greedy_block(torch.zeros(10, 8), seed=0), torch.eye(8))
    flat = hadamard(8)  # every entry is of the same size: any rotation only makes one larger
    assert torch.equal(greedy_block(flat, seed=0), torch.eye(8))


def test_many_rows_are_searched_by_the_largest_and_judged_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x = samples(400, 16)
    monkeypatch.setattr(module, "ROWS", 40)
    few = greedy_block(x, seed=0)
    assert torch.equal(few, greedy_block(x[x.norm(dim=1).topk(40).indices], seed=0))
    assert peak(x @ few) < 0.6 * peak(x)
    monkeypatch.setattr(module, "ROWS", 1)
    longest, flat = 10 * torch.eye(8)[:1], 3.4 * torch.tensor(list(product([-1.0, 1.0], repeat=8)))
    assert peak(longest @ greedy_block(longest, seed=0)) < peak(longest)
    # A rotation that spreads the longest row gathers some of the flat ones, of all signs.
    assert torch.equal(greedy_block(torch.cat([longest, flat]), seed=0), torch.eye(8))


@settings(deadline=None)
@given(blocks=st.integers(1, 12), size=st.sampled_from([1, 2, 4, 16]), seed=st.integers(0, 1000))
def test_zigzag_balances_blocks(blocks: int, size: int, seed: int) -> None:
    peaks = torch.rand(blocks * size, generator=torch.Generator().manual_seed(seed)).exp() ** 4
    order = zigzag(peaks, size)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(blocks * size))
    dealt = peaks[order].view(blocks, size)
    assert torch.equal(dealt, dealt.sort(dim=1, descending=True).values)
    if size % 2 == 0:  # what one block gets more in one round, it gets less in the next
        spread = float(dealt.sum(1).max() - dealt.sum(1).min())
        assert spread <= float(peaks.max() - peaks.min()) + 1e-4


def test_zigzag_by_hand() -> None:
    peaks = torch.tensor([9.0, 1, 8, 2, 7, 3])  # dealt to three: 9 8 7, back 3 2 1
    assert peaks[zigzag(peaks, 2)].tolist() == [9.0, 1.0, 8.0, 2.0, 7.0, 3.0]
    assert zigzag(torch.tensor([1.0, 2, 3, 4, 5, 6]), 3).tolist() == [5, 2, 1, 4, 3, 0]
    clustered = torch.tensor([8.0, 7, 6, 5, 1, 1, 1, 1])  # all large ones in one block
    assert clustered[zigzag(clustered, 4)].view(2, 4).sum(1).tolist() == [15.0, 15.0]


@pytest.mark.parametrize(("width", "block"), [(64, 16), (48, 16), (24, 8), (30, 2)])
def test_the_three_factors_are_one_orthogonal_matrix(width: int, block: int) -> None:
    x = samples(100, width)
    found = greedy(x, block, 0)
    whole = matrix(found, width)
    assert_orthogonal(whole)
    torch.testing.assert_close(found.apply(x), x @ whole, atol=1e-3, rtol=1e-5)
    assert found.permutation is not None
    assert found.second is not None
    blockwise = [torch.block_diag(*[each] * (width // block)) for each in (found.first, found.second)]  # type: ignore[no-untyped-call]
    moved = torch.zeros(width, width)
    moved[found.permutation, torch.arange(width)] = 1
    torch.testing.assert_close(whole, blockwise[0] @ moved @ blockwise[1], atol=1e-6, rtol=1e-5)
    weight = torch.randn(10, width)
    torch.testing.assert_close(found.apply(x) @ found.apply(weight).T, x @ weight.T, atol=1e-3, rtol=1e-4)


def test_the_permutation_and_second_rotation_lower_peaks_further() -> None:
    x = samples(200, 256)
    once, whole = greedy(x, 16, 0, permute=False), greedy(x, 16, 0)
    assert (once.permutation, once.second) == (None, None)
    assert torch.equal(once.first, whole.first)
    assert peak(whole.apply(x)) < 0.8 * peak(once.apply(x)) < 0.8 * peak(x)


def test_one_block_is_one_matrix() -> None:
    x = samples(100, 32)
    found = greedy(x, 32, 4)
    assert (found.permutation, found.second) == (None, None)
    assert_orthogonal(found.first)
    once = x.double() @ greedy_block(x, seed=4).double()
    dealt = once[:, zigzag(once.abs().amax(0), 32)]
    expected = dealt @ greedy_block(dealt, seed=5).double()
    torch.testing.assert_close(found.apply(x.double()), expected, atol=1e-4, rtol=1e-5)
    assert peak(expected) < peak(once)


def test_a_hadamard_matrix_is_a_first_block_alone() -> None:
    block = hadamard(8, 2)
    assert torch.equal(matrix(Blocks(block), 8), block)
    x = torch.randn(3, 4, 24, dtype=torch.float64)
    assert Blocks(block).apply(x).shape == x.shape
    assert Blocks(block).apply(x).dtype == torch.float64


def test_bad_widths_and_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 8 do not divide 12 channels"):
        greedy(torch.ones(2, 12), 8, 0)
    with pytest.raises(ValueError, match="blocks of 8 do not divide 12 channels"):
        zigzag(torch.ones(12), 8)
    with pytest.raises(ValueError, match="blocks of 8 do not divide 12 channels"):
        matrix(Blocks(hadamard(8)), 12)
    for bad in (torch.empty(0, 8), torch.tensor([[1.0, float("nan")]]), torch.tensor([[1.0, float("inf")]])):
        with pytest.raises(ValueError, match="must be some, and finite"):
            greedy_block(bad, seed=0)
