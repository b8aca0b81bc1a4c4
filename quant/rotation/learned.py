"""A rotation trained so that rounding costs a layer's output least. Knows a layer's numbers, not the layer.

SpinQuant (Liu et al., ICLR 2025) trains rotations by Cayley SGD on the network's loss. Ours: one block R for each
layer, on the layer's own output, with row vectors x:

    R = (I - A)(I + A)^-1 H        A = U - U^T, U strictly upper triangular, from 0        H a Hadamard matrix
    loss = || Q(x blkdiag(R)) Q(W blkdiag(R))^T - x W^T ||^2

R is orthogonal for every U, so Adam needs no projection. Gradients pass roundings unchanged, and reach scales through
the largest values, which is what flattens them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quant.grid import integer_range
from quant.recipe import FLOAT_BITS
from quant.rotation.hadamard import hadamard, rotate

Grain = Literal["tensor", "token"]

RATE = 0.006
"""Adam's first rate for U, falling to 0 along a cosine."""
ROWS, OUTPUTS = 256, 512
"""Samples and output channels of an iteration."""
REACH = 64
"""Samples of the largest norm, in all iterations: they decide how far a grid for the whole tensor reaches."""
JUDGED = 4
"""One in so many samples is not learned on and judges what was learned, where there are as many."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """How a layer is rounded while its rotation is judged.

    Attributes:
        weights: bits of weights, symmetric, a scale for each output channel.
        inputs: bits of inputs.
        grain: of inputs: `tensor` is one asymmetric grid from least to greatest, `token` a symmetric one for each row.
    """

    weights: int
    inputs: int
    grain: Grain

    def error(self, x: Tensor, weight: Tensor, block: Tensor, reach: Tensor | None = None) -> Tensor:
        """Mean squared error of the output, a scalar, for x [M, C] and weight [out, C].

        `reach` [K, C]: further inputs that a grid for the whole tensor must reach.
        """
        turned, rounded = rotate(x, block), _symmetric(rotate(weight, block), self.weights)
        if self.grain == "token":
            inputs = _symmetric(turned, self.inputs)
        else:
            inputs = _affine(turned, self.inputs, turned if reach is None else rotate(reach, block))
        return (inputs @ rounded.T - x @ weight.T).square().mean()


def learned_block(
    samples: Tensor,
    weight: Tensor,
    block: int,
    bits_of_weights: int,
    bits_of_inputs: int,
    iterations: int,
    seed: int,
    *,
    grain: Grain = "tensor",
) -> Tensor:
    """R [block, block] float32, orthogonal, deterministic by `seed`; hadamard(block, seed) if that is as good.

    Every fourth sample decides which is better and is not learned from; of fewer than four all are both.

    Args:
        samples: inputs [M, C] float.
        weight: [out, C] float; of a convolution [out * kh * kw, C].
        block: a power of two that divides C.
        bits_of_weights, bits_of_inputs: 2 to 8, or 32 for float.
        iterations: of Adam, on random samples and output channels each.
        seed: of the signs that it starts with, and of the choice of rows.
        grain: as `Rounded` has it.

    Raises:
        ValueError: `block` is no power of two or does not divide C, C differs, or a number is not finite.
    """
    x, w = samples.detach().float(), weight.detach().float()
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1] or not len(x):
        raise ValueError(f"samples {list(x.shape)} do not fit a weight {list(w.shape)}: [M, C] and [out, C] are needed")
    if not bool(x.isfinite().all()) or not bool(w.isfinite().all()):
        raise ValueError("samples and weights must be finite")
    judging, training = _judging_and_training(x)
    start, rounded = hadamard(block, seed), Rounded(bits_of_weights, bits_of_inputs, grain)
    with torch.no_grad():
        before = float(rounded.error(judging, w, start))
    if before == 0.0 or block == 1:
        return start
    learned = _train(training, w, start, rounded, iterations, seed)
    with torch.no_grad():
        return learned if float(rounded.error(judging, w, learned)) < before else start


def _judging_and_training(x: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) < JUDGED:
        return x, x
    judging = torch.arange(len(x)) % JUDGED == 0
    return x[judging], x[~judging]


def _train(x: Tensor, w: Tensor, start: Tensor, rounded: Rounded, iterations: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = start.double()
    upper = torch.zeros_like(base, requires_grad=True)
    reach = x[x.norm(dim=1).topk(min(REACH, len(x))).indices]
    adam = torch.optim.Adam([upper], lr=RATE)
    with torch.enable_grad():
        for iteration in range(iterations):
            adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * iteration / iterations)) / 2
            batch, outputs = _some(x, ROWS, generator), _some(w, OUTPUTS, generator)
            error = rounded.error(batch, outputs, _orthogonal(upper, base), torch.cat([batch, reach]))
            adam.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            adam.step()
    return _orthogonal(upper.detach(), base).float()


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows if len(rows) <= count else rows[torch.randperm(len(rows), generator=generator)[:count]]


def _orthogonal(upper: Tensor, base: Tensor) -> Tensor:
    """(I - A)(I + A)^-1 H, A being skew-symmetric; both factors commute."""
    skew = upper.triu(1) - upper.triu(1).T
    identity = torch.eye(len(base), dtype=base.dtype)
    turned: Tensor = torch.linalg.solve(identity + skew, (identity - skew) @ base)
    return turned


def _symmetric(rows: Tensor, bits: int) -> Tensor:
    """[M, C] rounded on a grid around zero for each row, from its largest entry; as weight_scales finds it by "max"."""
    if bits == FLOAT_BITS:
        return rows
    low, high = integer_range(bits)
    scales = _positive(torch.maximum(rows.amax(1) / high, rows.amin(1) / low)[:, None])
    return _round(rows / scales).clamp(low, high) * scales


def _affine(x: Tensor, bits: int, reach: Tensor) -> Tensor:
    """Rounded on the grid from the least to the greatest of `reach`, which holds zero; as affine_over spans it."""
    if bits == FLOAT_BITS:
        return x
    levels = (1 << bits) - 1
    low, high = reach.amin().clamp(max=0.0), reach.amax().clamp(min=0.0)
    scale = _positive((high - low) / levels)
    zero_point = (-low / scale).round().detach()
    return ((_round(x / scale) + zero_point).clamp(0, levels) - zero_point) * scale


def _positive(scales: Tensor) -> Tensor:
    """1 for scales of nothing but zeros."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _round(x: Tensor) -> Tensor:
    """To the nearest integer, for the gradient as if it were not."""
    return x + (x.round() - x).detach()
