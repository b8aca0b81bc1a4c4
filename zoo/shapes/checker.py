"""Reads a picture of the shapes world back: background, things, relation. Knows pixels, never the prompt's words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from zoo.shapes.draw import coverage
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Relation, Scene, Thing

SMALLEST = 24
"""Fewest pixels that count as a thing; anything smaller is noise."""

_SPLIT = sum(SIZES.values()) / len(SIZES)
_PALETTE = np.array([*COLOURS.values()], np.float32)
_GROUNDS = np.array([*BACKGROUNDS.values()], np.float32)


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing found in a picture and the centre (x, y) of its bounding box in pixels."""

    thing: Thing
    centre: tuple[float, float]


def _nearest(colour: NDArray[np.float32], palette: NDArray[np.float32]) -> int:
    return int(np.argmin(((palette - colour) ** 2).sum(-1)))


def _border(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    edge = np.concatenate(
        [
            picture[:2].reshape(-1, 3),
            picture[-2:].reshape(-1, 3),
            picture[:, :2].reshape(-1, 3),
            picture[:, -2:].reshape(-1, 3),
        ]
    )
    middle: NDArray[np.float32] = np.median(edge, axis=0).astype(np.float32)
    return middle


@lru_cache(maxsize=4096)
def _template(shape: str, centre: tuple[float, float], radius: float) -> NDArray[np.float32]:
    return coverage(shape, centre, radius)


def _shape(mask: NDArray[np.bool_], centre: tuple[float, float], radius: float) -> str:
    """The shape whose drawing overlaps a mask best (intersection over union), over small changes of radius."""

    def overlap(shape: str, r: float) -> float:
        template = _template(shape, centre, r)
        both = np.minimum(template, mask).sum()
        return float(both / np.maximum(template, mask).sum())

    return max(SHAPES, key=lambda shape: max(overlap(shape, radius + d) for d in (-0.5, 0.0, 0.5)))


def _read_thing(picture: NDArray[np.float32], mask: NDArray[np.bool_]) -> Seen:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    centre = ((columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2)
    radius = max(columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1) / 2
    core = ndimage.binary_erosion(mask)
    colour = np.median(picture[core if core.sum() >= 8 else mask], axis=0).astype(np.float32)
    size = "small" if radius < _SPLIT else "large"
    name = list(COLOURS)[_nearest(colour, _PALETTE)]
    return Seen(Thing(name, _shape(mask, (float(centre[0]), float(centre[1])), float(radius)), size), centre)


def read(picture: NDArray[np.uint8]) -> tuple[str, list[Seen]]:
    """The background's name and every thing found.

    Args:
        picture: [SIDE, SIDE, 3] uint8.

    Raises:
        ValueError: the picture has another shape; the world is 64x64.
    """
    if picture.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the shapes world is {SIDE}x{SIDE} RGB; got an array of shape {picture.shape}")
    pixels = picture.astype(np.float32)
    ground = _border(pixels)
    foreground = ((pixels - ground) ** 2).sum(-1) > 45.0**2
    labels, found = ndimage.label(foreground, structure=np.ones((3, 3)))
    masks = [labels == i for i in range(1, found + 1)]
    things = [_read_thing(pixels, mask) for mask in masks if mask.sum() >= SMALLEST]
    return list(BACKGROUNDS)[_nearest(ground, _GROUNDS)], things


def relation_between(first: Seen, second: Seen) -> Relation:
    """How the first thing lies to the second, by the longer axis between their centres."""
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    if abs(dx) >= abs(dy):
        return Relation.LEFT if dx < 0 else Relation.RIGHT
    return Relation.ABOVE if dy < 0 else Relation.BELOW


def faults(picture: NDArray[np.uint8], scene: Scene) -> list[str]:
    """What a picture gets wrong about a scene: names among count, background, colour, shape, size, relation.

    Empty means that every named attribute is right.
    """
    background, seen = read(picture)
    wrong = [] if background == scene.background else ["background"]
    if len(seen) != len(scene.things):
        return [*wrong, "count"]
    if scene.relation is None:
        return wrong + _differences(seen[0].thing, scene.things[0])
    orders = (seen, seen[::-1])
    return wrong + min((_pair_faults(order, scene) for order in orders), key=len)


def _differences(seen: Thing, wanted: Thing) -> list[str]:
    return [name for name in ("colour", "shape", "size") if getattr(seen, name) != getattr(wanted, name)]


def _pair_faults(seen: list[Seen], scene: Scene) -> list[str]:
    wrong = [
        fault for found, wanted in zip(seen, scene.things, strict=True) for fault in _differences(found.thing, wanted)
    ]
    right = relation_between(seen[0], seen[1]) == scene.relation
    return wrong if right else [*wrong, "relation"]
