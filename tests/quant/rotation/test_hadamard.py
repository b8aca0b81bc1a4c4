"""Hadamard matrices are orthonormal, flat and the same every time; rotation by blocks is one by a block matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rotation.hadamard import block_of, hadamard, rotate


@given(width=st.integers(1, 20_000), largest=st.integers(1, 5000))
def test_blocks_are_the_largest_powers_of_two_that_divide(width: int, largest: int) -> None:
    fitting = [1 << power for power in range(15) if width % (1 << power) == 0 and 1 << power <= largest]
    assert block_of(width, largest) == max(fitting)


@pytest.mark.parametrize(("width", "largest", "block"), [(1152, 128, 128), (320, 128, 64), (77, 128, 1), (12, 4, 4)])
def test_blocks_of_widths_that_models_have(width: int, largest: int, block: int) -> None:
    assert block_of(width, largest) == block


@pytest.mark.parametrize(("width", "largest"), [(0, 8), (8, 0), (-8, 8)])
def test_no_block_for_no_channels(width: int, largest: int) -> None:
    with pytest.raises(ValueError, match=f"at most {largest} divides {width} channels"):
        block_of(width, largest)


def test_four_channels_by_hand() -> None:
    expected = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    assert torch.equal(hadamard(4), expected)
    assert torch.equal(hadamard(1), torch.ones(1, 1))


@pytest.mark.parametrize("seed", [None, 0, 1, 2**40])
@pytest.mark.parametrize("size", [1, 2, 16, 128, 1024])
def test_matrices_are_orthonormal_and_flat(size: int, seed: int | None) -> None:
    matrix = hadamard(size, seed)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix.double() @ matrix.double().T, torch.eye(size).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5))


def test_signs_are_those_of_the_seed_whatever_was_drawn_before() -> None:
    first = hadamard(64, 3)
    torch.manual_seed(5)
    torch.rand(7)
    assert torch.equal(first, hadamard(64, 3))
    assert not torch.equal(first, hadamard(64, 4))
    signs = first / hadamard(64)
    assert torch.equal(signs, signs[:, :1].expand(64, 64).sign()), "signs belong to rows"
    assert 16 < int((signs[:, 0] > 0).sum()) < 48
    # these hold on every machine
    assert (hadamard(8, 0)[:, 0] > 0).tolist() == [False, True, True, False, True, True, True, True]


@pytest.mark.parametrize("size", [0, 3, 12, 96])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"no Hadamard matrix of size {size} is built"):
        hadamard(size)


def test_an_outlier_and_a_common_mean_are_spread() -> None:
    outlier = torch.zeros(128)
    outlier[77] = 64.0
    assert float(rotate(outlier, hadamard(128, 0)).abs().max()) == pytest.approx(64 / 128**0.5)
    mean = torch.ones(128)
    assert float(rotate(mean, hadamard(128)).abs().max()) == pytest.approx(128**0.5)
    assert float(rotate(mean, hadamard(128, 0)).abs().max()) < 4.5


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 4), max_size=3), blocks=st.integers(1, 5), size=st.sampled_from([1, 2, 8]))
def test_rotation_by_blocks_is_one_by_a_block_matrix(shape: list[int], blocks: int, size: int) -> None:
    x = torch.randn(*shape, blocks * size, dtype=torch.float64)
    block = hadamard(size, 1)
    whole = torch.block_diag(*[block.double()] * blocks)  # type: ignore[no-untyped-call]
    turned = rotate(x, block)
    assert turned.dtype == torch.float64
    torch.testing.assert_close(turned, x @ whole)
    torch.testing.assert_close(rotate(turned, block.T), x, atol=1e-6, rtol=1e-6)


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 8 do not divide 12 channels"):
        rotate(torch.ones(2, 12), hadamard(8))
