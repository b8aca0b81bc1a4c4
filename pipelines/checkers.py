"""Checkers by name: what reads a picture or video back and says whether it shows its prompt. Knows none of them.

A model's `halftone.json` names one; packages offer them as entry points of the group `halftone.checkers`, so that the
model's folder brings no code and this room need not know who does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import entry_points

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

GROUP = "halftone.checkers"

Checker = Callable[[str, NDArray[np.uint8]], bool | None]
"""Whether frames [F, H, W, 3] uint8, one of a picture, show all that a prompt names; None where it cannot tell."""


class NoChecker(Exception):
    """There is no checker of that name here; the message says why."""


@functools.cache
def checker_named(name: str) -> Checker:
    """The checker that an installed package offers under a name.

    Raises:
        NoChecker: none does.
    """
    found = next(iter(entry_points(group=GROUP, name=name)), None)
    if found is None:
        raise NoChecker(f"no installed package offers a checker named {name!r} (entry points {GROUP})")
    checker: Checker = found.load()
    return checker


def frames_of(picture: Tensor) -> NDArray[np.uint8]:
    """A picture [3, H, W] or a video [F, 3, H, W] of floats in 0..1 as [F, H, W, 3] uint8."""
    frames = picture if picture.ndim == 4 else picture[None]
    levels: NDArray[np.uint8] = (frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return levels
