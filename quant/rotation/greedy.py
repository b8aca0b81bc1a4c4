"""Rotations found on samples, which spread their outliers, and the permutation between them. Must not know layers.

DuQuant (Lin et al., NeurIPS 2024), read in its code and as TR-DQ's (Shao et al., AAAI 2026) uses it. Row vectors x:

    G  = blkdiag(R1) P blkdiag(R2)                       one R1 and one R2 for all blocks of a layer
    R  = S(c_1) B S(c_1) . S(c_2) B S(c_2) ...           c_k: channel of the largest |x| after k - 1 factors
    B  = F blkdiag(1, Q)                                 Q random orthogonal; F orthogonal, its first column constant

S(c) swaps channels 0 and c. Of the products of 0 to `steps` factors R is that of the least peak, max(x R) - min(x R).

Ours: float64, Q by seed, F the Householder reflection (the published matrix is a file; TR-DQ falls back to this one),
and of many rows only those of the largest norm are searched on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.rotation.hadamard import rotate

STEPS = 256
"""Of TR-DQ's code; DuQuant's takes 1,024 by default."""
ROWS = 2048
"""Rows of blocks that the search looks at, those of the largest norm, which make the peak."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """An orthogonal matrix G for C channels as its factors, in the order in which they act on rows x [..., C].

    Attributes:
        first: [b, b] float32, orthogonal; acts on every b neighbouring channels.
        permutation: [C] int64, or none: channel j of the result is channel permutation[j].
        second: [b, b] float32 like `first`, or none.
    """

    first: Tensor
    permutation: Tensor | None = None
    second: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """x G, of x's shape [..., C] and dtype. Of a weight [out, C] it is the weight for inputs x G.

        Raises:
            ValueError: b does not divide C.
        """
        x = rotate(x, self.first)
        if self.permutation is not None:
            x = x.index_select(-1, self.permutation)
        return x if self.second is None else rotate(x, self.second)


def matrix(blocks: Blocks, width: int) -> Tensor:
    """G [width, width] float32.

    Raises:
        ValueError: the blocks do not divide the width.
    """
    return blocks.apply(torch.eye(width))


def greedy(samples: Tensor, block: int, seed: int, *, permute: bool = True) -> Blocks:
    """The rotation of samples [M, C] float over blocks of `block` channels; deterministic by `seed`.

    With `permute` a zigzag permutation of the rotated channels and a second rotation follow, as published. Where there
    is one block only, the three are multiplied out to one matrix, which costs a third at run time.

    Raises:
        ValueError: `block` does not divide C, or the samples are none or not finite.
    """
    first = greedy_block(_in_blocks(samples, block), seed=seed)
    if not permute:
        return Blocks(first)
    rotated = rotate(samples.double(), first)
    permutation = zigzag(rotated.abs().amax(0), block)
    second = greedy_block(_in_blocks(rotated[:, permutation], block), seed=seed + 1)
    if samples.shape[1] == block:
        return Blocks((first.double()[:, permutation] @ second.double()).float())
    return Blocks(first, permutation, second)


def greedy_block(samples: Tensor, steps: int = STEPS, *, seed: int) -> Tensor:
    """R [b, b] float32 for samples [M, b] float; the identity where no product lowers the peak of all of them.

    Raises:
        ValueError: the samples are none or not finite.
    """
    if not samples.numel() or not bool(samples.isfinite().all()):
        raise ValueError(f"samples of {list(samples.shape)} cannot be rotated: they must be some, and finite")
    samples, size = samples.double(), samples.shape[1]
    identity = torch.eye(size, dtype=torch.float64)
    if size == 1:
        return identity.float()
    best = _search(_largest(samples), _spreader(size, seed), steps)
    return (best if _peak(samples @ best) < _peak(samples) else identity).float()


def _search(x: Tensor, spreader: Tensor, steps: int) -> Tensor:
    """The best product [b, b] of up to `steps` factors for rows x [M, b]; float64."""
    size = len(spreader)
    rotation = best = torch.eye(size, dtype=torch.float64)
    low, high = x.aminmax()
    least = high - low
    for _ in range(steps):
        place = x.argmax() if high > -low else x.argmin()
        factor = _swapped(spreader, int(place) % size)
        x, rotation = x @ factor, rotation @ factor
        low, high = x.aminmax()
        if high - low < least:
            least, best = high - low, rotation
    return best


def _spreader(size: int, seed: int) -> Tensor:
    """B [size, size] float64."""
    normal = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    normal[0] += 1
    whole = torch.eye(size, dtype=torch.float64)
    constant = whole - 2 * torch.outer(normal, normal) / normal.square().sum()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64)
    whole[1:, 1:], _ = torch.linalg.qr(drawn)
    return constant @ whole


def _swapped(square: Tensor, place: int) -> Tensor:
    """With rows and columns 0 and `place` swapped."""
    order = torch.arange(len(square))
    order[0], order[place] = place, 0
    return square[order][:, order]


def _largest(rows: Tensor) -> Tensor:
    if len(rows) <= ROWS:
        return rows
    return rows[rows.norm(dim=1).topk(ROWS).indices]


def _peak(x: Tensor) -> float:
    low, high = x.aminmax()
    return float(high - low)


def _in_blocks(samples: Tensor, block: int) -> Tensor:
    """[M, C] as [M * C / block, block]."""
    if block < 1 or samples.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide {samples.shape[-1]} channels")
    return samples.reshape(-1, block)


def zigzag(peaks: Tensor, block: int) -> Tensor:
    """The permutation [C] int64 that deals channels to C / block blocks to and fro, those of largest peak first.

    Thus every block gets its share of large channels. (DuQuant, section 3.2.) Within a block the largest comes first.

    Args:
        peaks: [C], largest |x| of each channel.
        block: channels of a block.

    Raises:
        ValueError: `block` does not divide C.
    """
    _in_blocks(peaks, block)
    rounds = peaks.argsort(descending=True, stable=True).view(block, -1).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.flatten()
