"""A linear rounded in closed form for a finite set of inputs that it is to answer. Knows nothing of time or layers.

With X^ the inputs [rows, in] as the rounded linear will get them, Y the outputs that it is to give, W and b its float
weights, A = [X^ 1] and lambda = DAMPING * mean(diag(A^T A)):

    (W*, b*) = argmin || A [W* b*]^T - Y ||^2 + lambda || [W* b*] - [W b] ||^2         (ridge regression)
    W^       = W* rounded column by column, most active first; each column's error is made up for by those that are not
               rounded yet, with H = A^T A + lambda I       (GPTQ: Frantar et al., ICLR 2023)

Ours: the regression, which makes up for inputs that differ from those of the float model, and the bias as the last
column, which is never rounded. Where A has fewer rows than columns there is much freedom to round W and keep Y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grid import integer_range

DAMPING = 0.1
"""Share of the mean of the Hessian's diagonal that is added to it; GPTQ's is 0.01. On the built-in UNet's temporal
layers at 4 bits, 25 timesteps: features are off by 0.07% with 0.01 and by 0.18% with 0.1, but between those timesteps,
where the layers serve as the fallback, by 2.0% and 1.3%. (To nearest 5.7% and 5.6%; AdaRound of 2,000 iterations 1.4%
and 1.7%.)
"""
_BLOCK = 128
"""Columns that are rounded before those behind them hear of it."""


def closed_form(
    weight: Tensor, bias: Tensor | None, scales: Tensor, bits: int, inputs: Tensor, exact: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Integers int8 [out, in] and bias [out] float32, absent if it was, for which inputs give about the exact outputs.

    Args:
        weight, bias: [out, in] and [out], float.
        scales: [out] of the integers, whose width is `bits`.
        inputs: [rows, in].
        exact: [rows, out].
    """
    known = 0 if bias is None else 1
    a = torch.cat([inputs.double(), inputs.new_ones(len(inputs), known).double()], dim=1)
    w = torch.cat([weight.double(), *([] if bias is None else [bias.double()[:, None]])], dim=1)
    ridge = DAMPING * float(a.square().sum() / a.shape[1]) or 1.0  # inputs of nothing but zeros: to nearest
    w += ridge_step(a, exact.double() - a @ w.T, ridge)
    hessian = a.T @ a
    hessian.diagonal().add_(ridge)
    integers, left = round_columns(w, scales, bits, hessian, known)
    return integers, left[:, 0] if known else None


def ridge_step(a: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """The change D [out, columns] of least || A D^T - missing ||^2 + ridge || D ||^2, for A [rows, columns]."""
    products = a @ a.T
    products.diagonal().add_(ridge)
    change: Tensor = a.T @ torch.linalg.solve(products, missing)
    return change.T


def round_columns(w: Tensor, scales: Tensor, bits: int, hessian: Tensor, free: int) -> tuple[Tensor, Tensor]:
    """GPTQ: integers int8 of the columns of w [out, columns] but the last `free`, and what those became, float32.

    Args:
        w: float weights.
        scales: [out] of the integers, whose width is `bits`.
        hessian: [columns, columns] float64, positive definite.
        free: columns that are not rounded, and make up for what is left.
    """
    count = w.shape[1] - free
    order = hessian.diagonal()[:count].argsort(descending=True, stable=True)
    whole = torch.cat([order, torch.arange(count, count + free)])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[whole][:, whole]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left, integers = w.T[whole].float(), torch.empty(count, w.shape[0], dtype=torch.int8)  # columns as rows: contiguous
    for start in range(0, count, _BLOCK):
        stop = min(count, start + _BLOCK)
        errors = torch.empty(stop - start, w.shape[0])
        for column in range(start, stop):
            integer = (left[column] / scales).round().clamp(*integer_range(bits))
            integers[order[column]] = integer.to(torch.int8)
            error = errors[column - start] = (left[column] - integer * scales) / upper[column, column]
            left[column + 1 : stop].addr_(upper[column, column + 1 : stop], error, alpha=-1)
        left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return integers.T.contiguous(), left[count:].T
