"""Hadamard matrices, and rotation of channels by blocks. Pure functions; must not know layers.

Every entry of the matrix has the same size, so a channel's outlier is spread evenly over its block.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_of(width: int, largest: int) -> int:
    """The largest power of two that divides `width` and is at most `largest`; 1, nothing to rotate, for odd widths.

    Raises:
        ValueError: `width` or `largest` is less than 1.
    """
    if width < 1 or largest < 1:
        raise ValueError(f"no block of at most {largest} divides {width} channels: both must be at least 1")
    return min(width & -width, 1 << (largest.bit_length() - 1))


def hadamard(size: int, seed: int | None = None) -> Tensor:
    """Sylvester's orthonormal Hadamard matrix H, float32 [size, size]; with a seed diag(+-1) H, the signs drawn by it.

    The signs act first on a row vector x, x diag(+-1) H, so that channels with a common mean, which H alone would
    gather in one place, are spread too. (QuaRot, Ashkboos et al., NeurIPS 2024: randomized Hadamard matrices.)

    Raises:
        ValueError: `size` is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"no Hadamard matrix of size {size} is built: it must be a power of two")
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    matrix = torch.full((1, 1), size**-0.5, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(pair, matrix)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        matrix *= torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return matrix.float()


def rotate(x: Tensor, block: Tensor) -> Tensor:
    """x blkdiag(block, ..., block), of x's shape [..., C] and dtype, for a block [b, b] of any float dtype.

    Raises:
        ValueError: b does not divide C.
    """
    size = block.shape[0]
    if x.shape[-1] % size:
        raise ValueError(f"blocks of {size} do not divide {x.shape[-1]} channels")
    turned: Tensor = x.reshape(*x.shape[:-1], -1, size) @ block.to(x)
    return turned.reshape(x.shape)
