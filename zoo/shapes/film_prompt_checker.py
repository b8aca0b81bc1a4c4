"""Whether a film shows what a prompt of the moving shapes world says: the checker `moving-shapes` of comparisons.

Reads prompts in the words of the captions, whatever their order; what a prompt leaves unsaid is not checked. Knows no
models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.captions import unknown_words
from zoo.shapes.motion import ROUND, Motion
from zoo.shapes.motion_captions import DOES, DOING, VOCABULARY
from zoo.shapes.motion_checker import FEWEST, read_film
from zoo.shapes.prompt_checker import PLAIN, background_said
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIDE

_MOTION = {phrase: motion for table in (DOING, DOES) for motion, phrases in table.items() for phrase in phrases}
_DEED = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _MOTION), key=len, reverse=True)) + r")\b")
_OF_DEEDS = frozenset(word for phrase in _MOTION for word in phrase.split()) - {"a"}


@dataclass(frozen=True, slots=True)
class AskedFilm:
    """What a prompt says of a film; None for what it leaves open."""

    shape: str
    colour: str | None
    motion: Motion | None
    background: str | None


def understand_film(prompt: str) -> AskedFilm | None:
    """What a prompt asks for; None for one that the world's words do not tell: unknown words, not one thing, more than
    one motion or half of one, or a motion that nobody could see.
    """
    if unknown_words(prompt, VOCABULARY):
        return None
    background, text = background_said(" ".join(re.findall(r"[a-z]+", prompt.lower())))
    deeds = _DEED.findall(text)
    words = [PLAIN.get(word, word) for word in _DEED.sub(" ", text).split()]
    shapes, colours = ([word for word in words if word in names] for names in (SHAPES, COLOURS))
    loose = not set(words).isdisjoint(_OF_DEEDS) or not set(words).isdisjoint(BACKGROUNDS)
    if len(shapes) != 1 or len(colours) > 1 or len(deeds) > 1 or loose:
        return None
    motion = _MOTION[deeds[0]] if deeds else None
    if motion is Motion.SPIN and shapes[0] in ROUND:
        return None
    return AskedFilm(shapes[0], colours[0] if colours else None, motion, background)


def shows_film(prompt: str, frames: NDArray[np.uint8]) -> bool | None:
    """Whether a film, frames [F, 64, 64, 3] uint8, shows all that a prompt names; None where that cannot be told."""
    asked = understand_film(prompt)
    if asked is None or frames.shape[1:] != (SIDE, SIDE, 3) or len(frames) < FEWEST:
        return None
    seen = read_film(frames)
    if seen.things != 1:
        return False
    return all(
        getattr(asked, name) in (None, getattr(seen, name)) for name in ("shape", "colour", "motion", "background")
    )
