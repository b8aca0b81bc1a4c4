"""Rounding inputs token by token, by the numbers that each token holds. Must not know layers.

A token's numbers x become integers round(x / s) + z on 0 .. h (h = 2^b - 1), with a scale of its own,

    s = max(max(x, 0) / (h - z), -min(x, 0) / z)

the least at which none is clipped. The zero point z is one for all tokens, so that integer kernels run it; or, as
ViDiT-Q and TR-DQ publish, each token's own, h = (max - min) / s. One z costs little where it is the right one: after a
SiLU or GELU nearly all of the grid is for positive numbers, in the middle (as is usual) half of it would be idle.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-30
"""Scales are at least this: of a token of zeros, nothing could be divided by its own."""
_ENDS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_SHARES = sorted({z / 255 for end in _ENDS for z in (end, 255 - end)} | {z / 15 for z in range(16)} | {128 / 255})
"""Zero points that are compared, as shares of the grid: for 8 bits closer together at the ends; for 4 bits all."""


def round_tokens(x: Tensor, zero_point: int, high: int, dims: tuple[int, ...] = (-1,)) -> tuple[Tensor, Tensor]:
    """(round(x / s), s) of x (any shape, float32): whole numbers -z .. high - z as float32, and scales.

    Traced, it is a grid of scale 1 with zero point z, which integer kernels take. `dims` are those that a token spans;
    scales have one entry along them.
    """
    low, top = _ends(x, dims)
    above = [top / (high - zero_point)] if zero_point < high else []
    below = [low / -zero_point] if zero_point > 0 else []
    scale = torch.stack([*above, *below]).amax(0).clamp(min=_LEAST)
    return torch.fake_quantize_per_tensor_affine(x * (1.0 / scale), 1.0, zero_point, 0, high), scale


def round_between(x: Tensor, high: int, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """x (any shape, float32) rounded to `high` steps from each token's least to its greatest number, zero included.

    As ViDiT-Q and TR-DQ round activations (min-max, asymmetric), but for each picture alone: in their code one scale
    serves a token's place in all pictures of a batch.
    """
    low, top = _ends(x, dims)
    scale = ((top - low) / high).clamp(min=_LEAST)
    zero_point = (-low / scale).round()
    return (((x / scale).round() + zero_point).clamp(0, high) - zero_point) * scale


def _ends(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each token's least and greatest number, or zero beyond them."""
    return x.amin(dims, keepdim=True).clamp(max=0.0), x.amax(dims, keepdim=True).clamp(min=0.0)


def round_alike(x: Tensor, bits: int, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """x (any shape, float32) rounded token by token, with the zero point that costs x least."""
    spread = TokenSpread()
    spread.add(x, dims)
    integers, scale = round_tokens(x, spread.zero_point(bits), (1 << bits) - 1, dims)
    return integers * scale


class TokenSpread:
    """What one zero point for all tokens would cost, counted as they come.

    The rounding error of a token of n numbers is about n s^2 / 12. For zero points z = f h, h s depends on f alone, so
    one count serves all widths.
    """

    def __init__(self) -> None:
        self._shares = torch.tensor(_SHARES, dtype=torch.float64)
        self._squares = torch.zeros_like(self._shares)
        self._own = 0.0
        self._numbers = 0

    def add(self, x: Tensor, dims: tuple[int, ...] = (-1,)) -> None:
        """Counts the tokens of an input; `dims` are those that one spans."""
        low, top = (end.detach().flatten().cpu().double()[:, None] for end in _ends(x, dims))
        above = torch.where(top > 0, top / (1 - self._shares), 0.0)
        below = torch.where(low < 0, -low / self._shares, 0.0)
        each = x.numel() / max(1, len(top))
        self._squares += torch.maximum(above, below).square().sum(0) * each
        self._own += float((top - low).square().sum()) * each
        self._numbers += x.numel()

    def zero_point(self, bits: int) -> int:
        """The one of least error; the middle where nothing but zeros was counted."""
        high = (1 << bits) - 1
        if not bool((self._squares > 0).any()):
            return (high + 1) // 2
        return round(float(self._shares[self._squares.argmin()]) * high)

    def error(self, bits: int, zero_point: int | None) -> float:
        """Mean squared rounding error of all numbers, by the nearest zero point compared; None: by each token's own."""
        high, squares = (1 << bits) - 1, self._own
        if zero_point is not None:
            squares = float(self._squares[(self._shares - zero_point / high).abs().argmin()])
        return squares / max(1, self._numbers) / high**2 / 12
