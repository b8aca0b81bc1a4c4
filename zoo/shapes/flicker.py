"""How much of a film flickers that should be still. Knows frames only; of the world, how its things are found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.shapes.motion_checker import thing_masks

MARGIN = 3
"""Pixels round a thing that count as its edge, not as background."""


def still_parts(film: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where nothing moves between a frame and the next, [frames - 1, height, width]: background in both, off the edges
    of the largest thing in either.

    Only the largest counts as a thing: what else stands out from the background is exactly what flickers. Raises
    `ValueError` for anything but two or more uint8 frames.
    """
    _require_frames(film)
    moving = np.stack([_largest(masks, film.shape[1:3]) for masks in thing_masks(film)])
    near = np.stack([ndimage.binary_dilation(mask, iterations=MARGIN) for mask in moving])
    return ~(near[1:] | near[:-1])


def _largest(masks: list[NDArray[np.bool_]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return max(masks, key=lambda mask: int(mask.sum()), default=np.zeros(shape, bool))


def flicker(film: NDArray[np.uint8], still: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute difference between frames that follow each other, in levels of 255, over still parts.

    Args:
        film: [frames, height, width, 3] uint8, at least two frames.
        still: what counts, [frames - 1, height, width]; by default the film's own `still_parts`. To compare a film with
            another of the same prompt and seed, as a quantized model's with float's, give both the other's.

    Raises:
        ValueError: shapes that do not fit, or no still part at all.
    """
    _require_frames(film)
    where = still_parts(film) if still is None else still
    if where.shape != (len(film) - 1, *film.shape[1:3]):
        raise ValueError(f"still parts {where.shape} do not fit a film {film.shape}: one less frame, the same size")
    if not where.any():
        raise ValueError("no part of the film is still, so that nothing could be seen to flicker")
    change = np.abs(np.diff(film.astype(np.int16), axis=0)).mean(-1)
    return float(change[where].mean())


def _require_frames(film: NDArray[np.uint8]) -> None:
    if film.ndim != 4 or film.shape[-1] != 3 or film.dtype != np.uint8 or len(film) < 2:
        raise ValueError(f"expected uint8 frames [2 or more, height, width, 3]; got {film.dtype} {film.shape}")
