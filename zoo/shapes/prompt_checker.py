"""Whether a picture shows what a prompt of the shapes world says: the checker `shapes` of comparisons.

Reads prompts in the words of the captions, whatever their order; what a prompt leaves unsaid is not checked. Knows no
models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.captions import RELATIONS, SYNONYMS, unknown_words
from zoo.shapes.checker import Seen, read, relation_between
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Relation

PLAIN = {said: word for word, ways in SYNONYMS.items() for said in ways}
"""Words to the one that they stand for."""
_RELATION = {phrase: relation for relation, phrases in RELATIONS.items() for phrase in phrases}
_LINK = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _RELATION), key=len, reverse=True)) + r")\b")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing as a prompt names it; None for what it leaves open."""

    shape: str
    colour: str | None
    size: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a prompt says: one or two things, how the first lies to the second, on which background."""

    things: tuple[Wanted, ...]
    relation: Relation | None
    background: str | None


def understand(prompt: str) -> Asked | None:
    """What a prompt asks for; None for one that the world's words do not tell: unknown words, or not one or two things
    that are set apart by a relation.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    if unknown_words(prompt):
        return None
    background, body = background_said(text)
    first, *rest = _LINK.split(body)
    parts = [first, *rest[1::2]]
    things = [thing for part in parts if (thing := _thing(part)) is not None]
    if len(parts) > 2 or len(things) != len(parts):
        return None
    return Asked(tuple(things), _RELATION[rest[0]] if rest else None, background)


def shows(prompt: str, frames: NDArray[np.uint8]) -> bool | None:
    """Whether a picture, frames [1, 64, 64, 3] uint8, shows all that a prompt names; None where that cannot be told."""
    asked = understand(prompt)
    if asked is None or frames.shape != (1, SIDE, SIDE, 3):
        return None
    background, seen = read(frames[0])
    if asked.background not in (None, background) or len(seen) != len(asked.things):
        return False
    orders = [seen, seen[::-1]] if len(seen) == 2 else [seen]
    return any(_fits(order, asked) for order in orders)


def _fits(seen: list[Seen], asked: Asked) -> bool:
    for found, wanted in zip(seen, asked.things, strict=True):
        thing = found.thing
        if thing.shape != wanted.shape or wanted.colour not in (None, thing.colour):
            return False
        if wanted.size not in (None, thing.size):
            return False
    return asked.relation is None or relation_between(seen[0], seen[1]) == asked.relation


def background_said(text: str) -> tuple[str | None, str]:
    """(the background's name, the text without it)."""
    match = re.search(r"\b(?:on (?:a |an |the )?)?(\w+) background\b", text)
    name = PLAIN.get(match[1], match[1]) if match else None
    if match is None or name not in BACKGROUNDS:
        return None, text
    return name, f"{text[: match.start()]} {text[match.end() :]}"


def _thing(part: str) -> Wanted | None:
    words = [PLAIN.get(word, word) for word in part.split()]
    found = [[word for word in words if word in names] for names in (SHAPES, COLOURS, SIZES)]
    if len(found[0]) != 1 or len(found[1]) > 1 or len(found[2]) > 1 or set(words) & set(BACKGROUNDS):
        return None
    return Wanted(found[0][0], *(names[0] if names else None for names in found[1:]))
