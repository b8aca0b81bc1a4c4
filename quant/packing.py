"""Integers of a few bits each, one after the other in bytes: what artifacts store. Must not know layers or files.

Number i of b bits lies in bits i b .. i b + b - 1 of the stream, bit 0 of a byte being its lowest; at four bits that
is the first of two in the low half, as `quant.grid.pack4` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quant.grid import integer_range

_PIECE = 1 << 20
"""Numbers that are packed at a time, a multiple of 8: each takes eight bytes meanwhile."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many integers of that width take."""
    return -(-count * bits // 8)


def pack(integers: Tensor, bits: int) -> Tensor:
    """int8 integers of any shape, of 2 to 7 bits with a sign, as uint8 [packed_bytes].

    Raises:
        ValueError: an integer does not fit in so many bits.
    """
    flat = integers.detach().cpu().flatten()
    low, high = integer_range(bits)
    if flat.numel() and (int(flat.min()) < low or int(flat.max()) > high):
        raise ValueError(f"{bits} bits hold {low}..{high}; the integers span {int(flat.min())}..{int(flat.max())}")
    numbers = flat.numpy().view(np.uint8)
    pieces = [_packed(numbers[start : start + _PIECE], bits) for start in range(0, len(numbers), _PIECE)]
    return torch.from_numpy(np.concatenate(pieces)) if pieces else torch.zeros(0, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int], bits: int) -> Tensor:
    """What `pack` packed: int8 of that shape.

    Raises:
        ValueError: so many numbers take another number of bytes.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        expected = f"uint8 [{packed_bytes(count, bits)}]"
        raise ValueError(f"{count} integers of {bits} bits take {expected}, not {packed.dtype} {list(packed.shape)}")
    stream, piece = packed.numpy(), _PIECE * bits // 8
    pieces = [_unpacked(stream[start : start + piece], bits) for start in range(0, len(stream), piece)]
    numbers = np.concatenate(pieces)[:count] if pieces else np.zeros(0, np.int8)
    return torch.from_numpy(numbers).view(*shape)


def _packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    spread = np.unpackbits(numbers[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(spread, bitorder="little")


def _unpacked(stream: np.ndarray, bits: int) -> np.ndarray:
    """The integers that begin in a piece of the stream; the last few may be padding."""
    flat = np.unpackbits(stream, bitorder="little")
    spread = flat[: len(flat) // bits * bits].reshape(-1, bits)
    numbers = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    return (numbers.view(np.int8) << (8 - bits)) >> (8 - bits)  # the sign fills the upper bits
