"""How alike two pictures or two videos are: PSNR, SSIM, MS-SSIM, and how far frame-to-frame changes differ.

Pure functions on tensors; must not know who made the pictures.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_SIDE = 11
"""Pixels of the SSIM window's side: smaller pictures cannot be compared."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's five scales, the finest first (Wang, Simoncelli and Bovik, 2003)."""

STILL = 2 / 255
"""What changes by no more, in any channel, from one frame to the next stands still."""


def as_frames(picture: Tensor) -> Tensor:
    """The frames [F, C, H, W] of a video; a picture [C, H, W] is one."""
    return picture if picture.ndim == 4 else picture[None]


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors of one shape, values 0..1; infinite when they are equal. A video
    is one tensor: what counts is the mean square over all its frames.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(picture, truth)
    pairs = zip(as_frames(picture), as_frames(truth), strict=True)
    error = statistics.fmean(float((own.double() - other.double()).square().mean()) for own, other in pairs)
    return math.inf if error == 0 else -10 * math.log10(error)


def decibels(value: float) -> float | None:
    """PSNR as JSON can say it: None where it is infinite, for pictures that are identical."""
    return None if math.isinf(value) else value


def mean_decibels(values: Iterable[float | None]) -> tuple[float | None, int]:
    """(mean over the pictures that differ, how many are identical): the mean is None where no picture differs."""
    every = list(values)
    finite = [value for value in every if value is not None]
    return (statistics.fmean(finite) if finite else None), len(every) - len(finite)


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity of two pictures [C, H, W], values 0..1, by Wang et al. (2004): a Gaussian window of 11
    pixels and sigma 1.5, only where it fits whole, mean over places and channels. Of videos [F, C, H, W]: mean of
    their frames.

    Raises:
        ValueError: the shapes differ, or a side is shorter than 11.
    """
    _require_comparable(picture, truth)
    if picture.ndim == 4:
        return statistics.fmean(ssim(own, other) for own, other in zip(picture, truth, strict=True))
    return float(_maps(picture.double()[:, None], truth.double()[:, None])[0].mean())


@dataclass(frozen=True, slots=True)
class MultiScale:
    """MS-SSIM, and of how many of its five scales."""

    value: float
    scales: int


def ms_ssim(picture: Tensor, truth: Tensor) -> MultiScale:
    """Multi-scale structural similarity of two pictures [C, H, W], values 0..1, by Wang, Simoncelli and Bovik (2003):
    contrast and structure at each scale, all of SSIM at the coarsest, each scale half the one before (mean of 2x2
    pixels; an odd last row or column is left out), negative values taken as 0. At the coarsest, of which little would
    be left, the window may overhang, over mirrored pixels.

    Five scales need 176 pixels a side. Smaller pictures have as many scales as fit, with the weights of those made to
    sum to 1 again: comparable among pictures of one size only. Of videos [F, C, H, W]: mean of frames.

    Raises:
        ValueError: the shapes differ, or a side is shorter than 11.
    """
    _require_comparable(picture, truth)
    if picture.ndim == 4:
        frames = [ms_ssim(own, other) for own, other in zip(picture, truth, strict=True)]
        return MultiScale(statistics.fmean(frame.value for frame in frames), frames[0].scales)
    scales = 1
    while scales < len(SCALE_WEIGHTS) and min(picture.shape[1:]) >= SMALLEST_SIDE << scales:
        scales += 1
    whole = 1.0 if scales == len(SCALE_WEIGHTS) else sum(SCALE_WEIGHTS[:scales])
    weights = [weight / whole for weight in SCALE_WEIGHTS[:scales]]
    x, y = picture.double()[:, None], truth.double()[:, None]
    value = 1.0
    for weight in weights[:-1]:
        value *= max(0.0, float(_maps(x, y)[1].mean())) ** weight
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    margin = [SMALLEST_SIDE // 2] * 4
    x, y = functional.pad(x, margin, mode="reflect"), functional.pad(y, margin, mode="reflect")
    value *= max(0.0, float(_maps(x, y)[0].mean())) ** weights[-1]
    return MultiScale(value, scales)


def difference(picture: Tensor, truth: Tensor) -> tuple[Tensor, int]:
    """(|picture - truth| made visible, by how much): the greatest power of two, at most 256, that clips nothing.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(picture, truth)
    apart = (picture - truth).abs()
    greatest = float(apart.max())
    scale = 1 if greatest == 0 else 2 ** min(8, max(0, math.floor(-math.log2(greatest))))
    return apart * scale, scale


@dataclass(frozen=True, slots=True)
class Consistency:
    """How a video's changes from frame to frame differ from those of the video that it stands for.

    Attributes:
        change_error: root mean square of (its change - float's change), values 0..1, over all pixels of all pairs of
            frames: 0 where it moves exactly as float does, whatever its colours.
        flicker: mean absolute change of pixels that stand still in float's video; `float_flicker` is float's own, and
            `still_share` the share of such pixels. None where nothing stands still.
    """

    change_error: float
    flicker: float | None
    float_flicker: float | None
    still_share: float


def consistency(video: Tensor, truth: Tensor) -> Consistency | None:
    """Temporal consistency of two videos [F, C, H, W], values 0..1; None for a single frame, which cannot change.

    Raises:
        ValueError: the shapes differ, or are not those of videos.
    """
    _require_same_shape(video, truth)
    if video.ndim != 4:
        raise ValueError(f"videos are [F, C, H, W], not {list(video.shape)}")
    if len(video) < 2:
        return None
    apart, moved, still_moved, count = 0.0, 0.0, 0.0, 0
    for own, wanted in zip(_changes(video), _changes(truth), strict=True):
        still = (wanted.abs().amax(dim=0) <= STILL).expand_as(wanted)
        apart += float((own - wanted).square().sum())
        moved += float(own[still].abs().sum())
        still_moved += float(wanted[still].abs().sum())
        count += int(still.sum())
    whole = video[1:].numel()
    return Consistency(
        change_error=math.sqrt(apart / whole),
        flicker=moved / count if count else None,
        float_flicker=still_moved / count if count else None,
        still_share=count / whole,
    )


def _changes(video: Tensor) -> Iterator[Tensor]:
    """From frame to frame, [C, H, W] float64 each: one at a time, as a whole video of them may not fit into memory."""
    return (after.double() - before.double() for before, after in itertools.pairwise(video))


def _maps(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(SSIM, its contrast-structure part) at each place of [C, 1, H, W] float64 where the window fits."""
    window = _gaussian(SMALLEST_SIDE, 1.5).tolist()

    def blur(values: Tensor) -> Tensor:
        return _weighed(_weighed(values, window, -2), window, -1)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = (blur(x * x) - mean_x**2).clamp(min=0), (blur(y * y) - mean_y**2).clamp(min=0)
    both = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * both + c2) / (var_x + var_y + c2)
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast, contrast


def _weighed(values: Tensor, window: Sequence[float], dim: int) -> Tensor:
    """Sums under a window along a dimension, where it fits whole: what a convolution gives, in a tenth of its time."""
    length = values.shape[dim] - len(window) + 1
    total = values.narrow(dim, 0, length) * window[0]
    for place, weight in enumerate(window[1:], start=1):
        total.add_(values.narrow(dim, place, length), alpha=weight)
    return total


def _gaussian(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()


def _require_comparable(picture: Tensor, truth: Tensor) -> None:
    _require_same_shape(picture, truth)
    if picture.ndim not in (3, 4) or min(picture.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(f"SSIM compares pictures [C, H, W] of at least 11 by 11, not {list(picture.shape)}")


def _require_same_shape(picture: Tensor, truth: Tensor) -> None:
    if picture.shape != truth.shape:
        raise ValueError(f"pictures of shapes {list(picture.shape)} and {list(truth.shape)} cannot be compared")
