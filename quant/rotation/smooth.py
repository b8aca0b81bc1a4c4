"""Channel factors that move the range of inputs into weights, and how strong they are. Must not know layers.

SmoothQuant (Xiao et al., ICML 2023), equation 4: s_c = max|X_c|^a / max|W_c|^(1-a); X / s meets W s. Over timesteps,
max|X_c| is a running mean as in ViDiT-Q's and TR-DQ's code.

Ours: the exponent is searched on an error that the caller measures, and channels that are zero on either side keep 1
(published code takes 1e-5 for their range, which makes of a dead channel the largest weight).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def weight_peaks(weight: Tensor) -> Tensor:
    """max|W_c| [C] float32 of the input channels of a weight [out, C, ...]."""
    return weight.detach().float().abs().transpose(0, 1).flatten(1).amax(1)


def factors(peaks: Tensor, weight_peaks: Tensor, exponent: float) -> Tensor:
    """s [C] float32: positive and finite, and so is 1 / s.

    A channel keeps 1 where its inputs or its weights are always zero, or where s or 1/s would be no normal float32.

    Args:
        peaks: max|X_c|, [C] float.
        weight_peaks: max|W_c|, [C] float.
        exponent: a, 0 to 1.

    Raises:
        ValueError: the peaks are of different or no channels, negative or not finite, or the exponent is out of bounds.
    """
    if peaks.ndim != 1 or peaks.shape != weight_peaks.shape:
        raise ValueError(f"peaks of {list(peaks.shape)} inputs do not fit {list(weight_peaks.shape)} of weights")
    if not 0 <= exponent <= 1:
        raise ValueError(f"a smoothing exponent is 0 to 1, not {exponent}")
    x, w = _checked(peaks), _checked(weight_peaks)
    found = x.pow(exponent) / w.pow(1 - exponent)
    tiny = torch.finfo(torch.float32).tiny
    usable = (x > 0) & (w > 0) & (found >= tiny) & (found <= 1 / tiny)
    return torch.where(usable, found, torch.ones_like(found)).float()


def _checked(peaks: Tensor) -> Tensor:
    """As float64."""
    if not bool((peaks.isfinite() & (peaks >= 0)).all()):
        raise ValueError("peaks of channels must be finite and not negative")
    return peaks.detach().double()


def running_peaks(peaks: Iterable[Tensor], momentum: float) -> Tensor:
    """The running mean [C] float32 of max|X| [C] of slots, in the order in which they are sampled.

    The first slot counts in full: m = p_1, then m = momentum m + (1 - momentum) p_k. Slots of zeros alone were not seen
    and are left out; where all are, the mean is zero.

    Raises:
        ValueError: there are no slots, or a peak is negative or not finite.
    """
    mean = None
    for slot in peaks:
        now = _checked(slot)
        if mean is None or not bool(mean.any()):
            mean = now
        elif bool(now.any()):
            mean = momentum * mean + (1 - momentum) * now
    if mean is None:
        raise ValueError("no peaks to take a running mean of")
    return mean.float()


def search_exponent(
    peaks: Tensor, weight_peaks: Tensor, error: Callable[[Tensor], float], grid: int = 20
) -> tuple[float | None, float]:
    """The exponent among 0, 1/grid, .., 1 of the least error, and that error; None if factors of 1 are as good.

    Args:
        peaks, weight_peaks: as `factors` takes them.
        error: of factors [C] float32; to be measured on calibrated inputs.
        grid: steps of the search.

    Raises:
        ValueError: as `factors`, or an error is not a number.
    """
    best: tuple[float | None, float] = (None, _number(error(torch.ones_like(peaks, dtype=torch.float32)), None))
    for exponent in (step / grid for step in range(grid + 1)):
        found = _number(error(factors(peaks, weight_peaks, exponent)), exponent)
        if found < best[1]:
            best = (exponent, found)
    return best


def _number(error: float, exponent: float | None) -> float:
    if error != error:
        what = "no smoothing" if exponent is None else f"exponent {exponent}"
        raise ValueError(f"the error with {what} is no number")
    return error
