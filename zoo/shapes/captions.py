"""The grammar of the shapes world: scenes to sentences, several ways, and the words that a model of it knows."""

from __future__ import annotations

import re

import numpy as np

from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Relation, Scene, Thing

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "gray": ("gray", "grey"),
    "cross": ("cross", "plus"),
    "square": ("square", "box"),
    "circle": ("circle", "disc"),
}
RELATIONS: dict[Relation, tuple[str, ...]] = {
    Relation.LEFT: ("left of", "to the left of"),
    Relation.RIGHT: ("right of", "to the right of"),
    Relation.ABOVE: ("above", "over", "on top of"),
    Relation.BELOW: ("below", "under", "beneath"),
}
_FILLERS = ("a", "an", "of", "on", "picture", "image", "drawing", "background")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *_FILLERS}
        | {word for words in SYNONYMS.values() for word in words}
        | {word for phrases in RELATIONS.values() for phrase in phrases for word in phrase.split()}
    )
)
"""Every word that captions use."""


def unknown_words(prompt: str, vocabulary: tuple[str, ...] = VOCABULARY) -> list[str]:
    """Words of a prompt that no caption ever uses, in order, each once."""
    words = re.findall(r"[^\W_]+(?:'\w+)?", prompt.lower())
    return list(dict.fromkeys(word for word in words if word not in vocabulary))


def say(word: str, rng: np.random.Generator, *, plain: bool) -> str:
    """A word or, unless plain, now and then one that means the same."""
    choices = SYNONYMS.get(word, (word,))
    return word if plain or rng.random() < 0.6 else str(rng.choice(choices))


def _name(thing: Thing, rng: np.random.Generator, *, plain: bool, sized: bool) -> str:
    words = (thing.size, thing.colour, thing.shape) if sized else (thing.colour, thing.shape)
    return " ".join(say(word, rng, plain=plain) for word in words)


def article(phrase: str) -> str:
    """A phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _body(scene: Scene, rng: np.random.Generator, *, plain: bool, sized: bool) -> str:
    """The things and how they lie: `a red circle left of a blue square`."""
    told = scene if plain or rng.random() < 0.5 else scene.swapped()
    names = [_name(thing, rng, plain=plain, sized=sized) for thing in told.things]
    bare = not plain and rng.random() < 0.15
    parts = names if bare else [article(name) for name in names]
    if told.relation is None:
        return parts[0]
    phrases = RELATIONS[told.relation]
    link = phrases[0] if plain or rng.random() < 0.5 else str(rng.choice(phrases))
    return f"{parts[0]} {link} {parts[1]}"


def caption(
    scene: Scene, rng: np.random.Generator, *, plain: bool = False, without: frozenset[str] = frozenset()
) -> str:
    """One sentence about a scene.

    Args:
        scene: what to tell.
        rng: chooses among wordings.
        plain: the canonical wording instead of a random one.
        without: attributes left unsaid, of `size` and `background`; all others are always named.
    """
    body = _body(scene, rng, plain=plain, sized="size" not in without)
    form = 0 if plain else int(rng.integers(0, 6))
    if form == 4:
        body = f"{article(str(rng.choice(['picture', 'image', 'drawing'])))} of {body}"
    if "background" in without:
        return body
    place = f"{say(scene.background, rng, plain=plain)} background"
    if form == 3:
        return f"on {article(place)}, {body}"
    return f"{body}, {place}" if form == 5 else f"{body} on {article(place)}"
