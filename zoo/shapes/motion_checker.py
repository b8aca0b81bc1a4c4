"""Reads a film of the shapes world back: background, thing, motion. Knows frames, never the prompt's words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.shapes.checker import SMALLEST
from zoo.shapes.film import coverage
from zoo.shapes.motion import ROUND, Motion, MovingScene, Pose, Track
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIDE

Film = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FEWEST = 5
"""Frames below which a motion cannot be told."""

_FOREGROUND = 45.0
"""Distance from the background's colour, in levels, from which on a pixel belongs to a thing."""
_PALETTE = np.array([*COLOURS.values()], np.float32)
_GROUNDS = np.array([*BACKGROUNDS.values()], np.float32)
_SYMMETRY = {"triangle": 360.0, "square": 90.0, "diamond": 90.0, "cross": 90.0}
"""Degrees after which a turned shape looks as before."""
_MASS = {
    "circle": (np.pi, 0.0),
    "square": (4.0, 0.0),
    "triangle": (2.0, 1 / 3),
    "diamond": (2.0, 0.0),
    "cross": (20 / 9, 0.0),
    "ring": (np.pi * (1 - 0.44**2), 0.0),
}
"""Area of each upright shape of radius 1, and how far below its box's middle its centre of mass lies."""
_FAR = 12.0
"""Pixels that a thing must come to have gone anywhere; the mass of a spinning triangle moves by 9."""
_GROWN = 1.5
"""Factor in size from which on a thing has grown or shrunk."""
_SPUN = 60.0
"""Degrees from which on a thing has spun."""
_STEP = 5.0
"""Degrees between the angles that are tried."""


@dataclass(frozen=True, slots=True)
class SeenFilm:
    """What a film shows. `things` is how many things its frames hold, most of those with other than one where there are
    such; without exactly one the rest is None; so is a motion that is none of those known."""

    background: str
    things: int
    colour: str | None = None
    shape: str | None = None
    motion: Motion | None = None


def _nearest(colour: NDArray[np.float32], palette: NDArray[np.float32]) -> int:
    return int(np.argmin(((palette - colour) ** 2).sum(-1)))


def _ground(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The background's colour: the median of a two pixels wide border of all frames."""
    edge = np.ones(pixels.shape[1:3], bool)
    edge[2:-2, 2:-2] = False
    middle: NDArray[np.float32] = np.median(pixels[:, edge].reshape(-1, 3), axis=0).astype(np.float32)
    return middle


def _things(foreground: Mask) -> list[Mask]:
    """Masks of the things in one frame; what is smaller than SMALLEST pixels is noise."""
    labels, found = ndimage.label(foreground, structure=np.ones((3, 3)))
    masks = [labels == i for i in range(1, found + 1)]
    return [mask for mask in masks if mask.sum() >= SMALLEST]


def thing_masks(film: Film) -> list[list[Mask]]:
    """For every frame the masks [SIDE, SIDE] of the things in it."""
    pixels = film.astype(np.float32)
    far = ((pixels - _ground(pixels)) ** 2).sum(-1) > _FOREGROUND**2
    return [_things(frame) for frame in far]


def _colour(pixels: NDArray[np.float32], masks: Mask) -> NDArray[np.float32]:
    """The median colour of a thing's inner pixels over all frames."""
    core = np.stack([ndimage.binary_erosion(mask) for mask in masks])
    chosen = core if core.sum() >= 8 * len(masks) else masks
    middle: NDArray[np.float32] = np.median(pixels[chosen], axis=0).astype(np.float32)
    return middle


def _cover(pixels: NDArray[np.float32], masks: Mask, ground: Track, colour: Track) -> NDArray[np.float32]:
    """How much of each pixel the thing covers, [frames, SIDE, SIDE] in 0..1: where it lies between the two colours."""
    way = colour - ground
    share = ((pixels - ground) @ way) / float(way @ way)
    near = np.stack([ndimage.binary_dilation(mask, iterations=2) for mask in masks])
    covered: NDArray[np.float32] = np.where(near, np.clip(share, 0, 1), 0).astype(np.float32)
    return covered


@dataclass(frozen=True, slots=True)
class _Trace:
    """What is seen of one thing: its cover [frames, SIDE, SIDE], area and centre of mass [frames]."""

    cover: NDArray[np.float32]
    area: Track
    x: Track
    y: Track


def _trace(cover: NDArray[np.float32]) -> _Trace:
    area = np.maximum(cover.sum((1, 2)), np.float32(1e-6))
    steps = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    return _Trace(cover, area, (cover.sum(1) @ steps) / area, (cover.sum(2) @ steps) / area)


def _fit(seen: _Trace, shape: str, degrees: float, frames: slice = slice(None)) -> Track:
    """Overlap (intersection over union) of what is seen with a shape of the same area and centre of mass, turned so
    far, for every frame."""
    per_radius, below = _MASS[shape]
    radius = np.sqrt(seen.area[frames] / per_radius)
    angle = np.full_like(radius, np.radians(degrees))
    x = seen.x[frames] + np.sin(angle) * below * radius
    y = seen.y[frames] - np.cos(angle) * below * radius
    template, cover = coverage(shape, Pose(x, y, radius, angle)), seen.cover[frames]
    either = np.maximum(template, cover).sum((1, 2))
    overlap: Track = np.minimum(template, cover).sum((1, 2)) / np.maximum(either, 1e-6)
    return overlap


def _turned(seen: _Trace, shape: str) -> float:
    """Degrees by which a shape turns during a film, clockwise; 0 for one whose turning nobody can see."""
    if shape in ROUND:
        return 0.0
    whole = _SYMMETRY[shape]
    tried = np.arange(0, whole, _STEP)
    best = tried[np.argmax([_fit(seen, shape, degrees) for degrees in tried], axis=0)]
    # between two frames it turns by less than half of what leaves it unchanged
    return float(((np.diff(best) + whole / 2) % whole - whole / 2).sum())


def _ways(track: Track) -> tuple[float, float, float]:
    """How far a coordinate comes, how wide its range is, and how much of it is gone through in all."""
    smooth = np.convolve(track, np.full(2, 0.5), "valid")
    return float(smooth[-1] - smooth[0]), float(np.ptp(smooth)), float(np.abs(np.diff(smooth)).sum())


def _winding(seen: _Trace) -> float:
    """Turns that the thing makes round the middle of its way."""
    x, y = ((track.max() + track.min()) / 2 for track in (seen.x, seen.y))
    angle = np.unwrap(np.arctan2(seen.y - y, seen.x - x))
    return float(abs(angle[-1] - angle[0]) / (2 * np.pi))


def _path(seen: _Trace) -> Motion | None:
    """The motion of a thing that goes from place to place, by the way of its centre."""
    (dx, width, _), (dy, height, distance) = _ways(seen.x), _ways(seen.y)
    if min(width, height) > _FAR and _winding(seen) > 0.6:
        return Motion.ORBIT
    if height > _FAR and width < height / 2 and distance > 2 * height:
        return Motion.BOUNCE
    if max(abs(dx), abs(dy)) < _FAR or min(abs(dx), abs(dy)) > max(abs(dx), abs(dy)) / 2:
        return None
    if abs(dx) > abs(dy):
        return Motion.LEFT if dx < 0 else Motion.RIGHT
    return Motion.UP if dy < 0 else Motion.DOWN


def _shape_and_motion(seen: _Trace) -> tuple[str, Motion | None]:
    """Things stand upright unless they spin, and those begin upright."""
    growth = float(np.sqrt(np.median(seen.area[-3:]) / np.median(seen.area[:3])))
    if max(growth, 1 / growth) > _GROWN:
        return _upright(seen, slice(None)), Motion.GROW if growth > 1 else Motion.SHRINK
    if max(_ways(seen.x)[1], _ways(seen.y)[1]) > _FAR:
        return _upright(seen, slice(None)), _path(seen)
    shape = _upright(seen, slice(0, 2), (-5, 0, 5, 10))
    return shape, Motion.SPIN if abs(_turned(seen, shape)) > _SPUN else None


def _upright(seen: _Trace, frames: slice, angles: tuple[int, ...] = (0,)) -> str:
    return max(SHAPES, key=lambda shape: max(_fit(seen, shape, angle, frames).mean() for angle in angles))


def read_film(film: Film) -> SeenFilm:
    """What a film shows.

    Args:
        film: [frames, SIDE, SIDE, 3] uint8.

    Raises:
        ValueError: the film has another shape, or fewer than FEWEST frames.
    """
    if film.ndim != 4 or film.shape[1:] != (SIDE, SIDE, 3) or len(film) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} frames of {SIDE}x{SIDE} RGB; got an array of shape {film.shape}")
    masks = thing_masks(film)
    pixels = film.astype(np.float32)
    ground = _ground(pixels)
    background = list(BACKGROUNDS)[_nearest(ground, _GROUNDS)]
    counts = Counter(len(frame) for frame in masks)
    if set(counts) != {1}:
        # one frame with another number of things is enough to be wrong
        return SeenFilm(background, next(count for count, _ in counts.most_common() if count != 1))
    mask = np.stack([frame[0] for frame in masks])
    colour = _colour(pixels, mask)
    shape, motion = _shape_and_motion(_trace(_cover(pixels, mask, ground, colour)))
    return SeenFilm(background, 1, list(COLOURS)[_nearest(colour, _PALETTE)], shape, motion)


def film_faults(film: Film, scene: MovingScene) -> list[str]:
    """What a film gets wrong about a scene: names among background, count, colour, shape, motion.

    Empty means that everything is right. Raises `ValueError` as `read_film` does.
    """
    seen = read_film(film)
    wrong = [] if seen.background == scene.background else ["background"]
    if seen.things != 1:
        return [*wrong, "count"]
    return wrong + [name for name in ("colour", "shape", "motion") if getattr(seen, name) != getattr(scene, name)]
