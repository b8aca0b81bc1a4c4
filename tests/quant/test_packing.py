"""Integers of 2 to 7 bits survive packing, take the bytes that they should, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.grid import integer_range, pack4
from quant.packing import _PIECE, pack, packed_bytes, unpack


@settings(deadline=None)
@given(data=st.data(), bits=st.integers(2, 7))
def test_integers_survive(data: st.DataObject, bits: int) -> None:
    low, high = integer_range(bits)
    numbers = data.draw(st.lists(st.integers(low, high), max_size=41))
    packed = pack(torch.tensor(numbers, dtype=torch.int8), bits)
    assert (packed.dtype, packed.shape) == (torch.uint8, (packed_bytes(len(numbers), bits),))
    assert unpack(packed, (len(numbers),), bits).tolist() == numbers


@pytest.mark.parametrize("bits", range(2, 8))
def test_more_than_a_piece_survives_in_its_shape(bits: int) -> None:
    low, high = integer_range(bits)
    numbers = torch.randint(low, high + 1, (3, _PIECE // 2 + 5), generator=torch.Generator().manual_seed(bits))
    packed = pack(numbers.to(torch.int8), bits)
    assert packed.nbytes == -(-numbers.numel() * bits // 8)
    assert torch.equal(unpack(packed, numbers.shape, bits), numbers.to(torch.int8))


def test_four_bits_lie_as_they_always_did() -> None:
    numbers = torch.tensor([1, -1, -8, 7, 3], dtype=torch.int8)
    assert torch.equal(pack(numbers, 4), pack4(numbers))
    assert pack(torch.tensor([1, -1, 2], dtype=torch.int8), 3).tolist() == [0b10111001, 0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 bits hold -4\.\.3; the integers span 0\.\.4"):
        pack(torch.tensor([0, 4], dtype=torch.int8), 3)
    with pytest.raises(ValueError, match=r"4 integers of 6 bits take uint8 \[3\], not torch.uint8 \[4\]"):
        unpack(torch.zeros(4, dtype=torch.uint8), (2, 2), 6)
