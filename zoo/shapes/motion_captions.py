"""The grammar of moving scenes: to sentences, several ways, and the words that a video model of this world knows."""

from __future__ import annotations

import numpy as np

from zoo.shapes.captions import SYNONYMS, article, say
from zoo.shapes.motion import Motion, MovingScene
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES

DOING: dict[Motion, tuple[str, ...]] = {
    Motion.LEFT: ("moving left", "moving to the left", "sliding left", "sliding to the left"),
    Motion.RIGHT: ("moving right", "moving to the right", "sliding right", "sliding to the right"),
    Motion.UP: ("moving up", "moving upwards", "rising", "sliding up"),
    Motion.DOWN: ("moving down", "moving downwards", "falling", "sliding down"),
    Motion.GROW: ("growing", "growing larger", "getting bigger", "expanding"),
    Motion.SHRINK: ("shrinking", "getting smaller", "shrinking away"),
    Motion.SPIN: ("spinning", "rotating", "turning around", "spinning in place"),
    Motion.BOUNCE: ("bouncing", "bouncing up and down", "hopping", "jumping up and down"),
    Motion.ORBIT: ("orbiting", "circling around the middle", "going around in circles", "orbiting the center"),
}
"""What a thing does, as a participle; the first is the plain wording."""

DOES: dict[Motion, tuple[str, ...]] = {
    Motion.LEFT: ("moves left", "moves to the left", "slides left"),
    Motion.RIGHT: ("moves right", "moves to the right", "slides right"),
    Motion.UP: ("moves up", "rises", "slides up"),
    Motion.DOWN: ("moves down", "falls", "slides down"),
    Motion.GROW: ("grows", "gets bigger", "expands"),
    Motion.SHRINK: ("shrinks", "gets smaller"),
    Motion.SPIN: ("spins", "rotates", "turns around"),
    Motion.BOUNCE: ("bounces", "bounces up and down", "hops", "jumps up and down"),
    Motion.ORBIT: ("orbits", "circles around the middle", "goes around in circles"),
}
"""The same as a finite verb."""

_MEDIA = ("video", "clip", "animation", "film")
_FILLERS = ("a", "an", "of", "on", "background", *_MEDIA)
_PHRASES = [phrase for table in (DOING, DOES) for phrases in table.values() for phrase in phrases]
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*COLOURS, *BACKGROUNDS, *SHAPES, *_FILLERS}
        | {word for name in (*COLOURS, *BACKGROUNDS, *SHAPES) for word in SYNONYMS.get(name, ())}
        | {word for phrase in _PHRASES for word in phrase.split()}
    )
)
"""Every word that captions use."""


def _deed(motion: Motion, rng: np.random.Generator, *, plain: bool, finite: bool) -> str:
    phrases = (DOES if finite else DOING)[motion]
    return phrases[0] if plain or rng.random() < 0.4 else str(rng.choice(phrases))


def motion_caption(
    scene: MovingScene, rng: np.random.Generator, *, plain: bool = False, background: bool = True
) -> str:
    """One sentence about a moving scene.

    Args:
        scene: what to tell.
        rng: chooses among wordings.
        plain: the canonical wording instead of a random one.
        background: whether it is named; all else always is.
    """
    form = 0 if plain else int(rng.integers(0, 7))
    name = " ".join(say(word, rng, plain=plain) for word in (scene.colour, scene.shape))
    thing = name if not plain and rng.random() < 0.1 else article(name)
    if form == 4:
        thing = f"{article(str(rng.choice(_MEDIA)))} of {thing}"
    deed = _deed(scene.motion, rng, plain=plain, finite=form in (5, 6))
    if not background:
        return f"{thing} {deed}"
    place = f"{say(scene.background, rng, plain=plain)} background"
    if form == 3:
        return f"on {article(place)}, {thing} {deed}"
    if form == 2:
        return f"{thing} on {article(place)}, {deed}"
    return f"{thing} {deed}, {place}" if form in (1, 6) else f"{thing} {deed} on {article(place)}"
