"""Which rows the table of videos has, each a recipe for a video model. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import quant

Bits = tuple[int, int]
"""Of weights and activations."""

BASES: Final[dict[Bits, dict[str, str]]] = {
    (8, 8): {
        "rtn": "rtn-w8a8",
        "smoothquant": "smoothquant-w8a8",
        "tfmq": "tfmq-w8a8",
        "trdq": "trdq-w8a8",
    },
    (4, 8): {
        "rtn": "rtn-w4a8",
        "smoothquant": "smoothquant-w4a8",
        "tfmq": "tfmq-w4a8",
        "trdq": "trdq-w4a8",
        "trdq + cfg": "trdq-w4a8-cfg",
    },
}
"""Method to the built-in recipe, by bits; ours as they are shipped."""

METHODS: Final = tuple(BASES[4, 8])
RIVALS: Final = ("rtn", "smoothquant")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table before it is measured."""

    method: str
    bits: Bits
    recipe: quant.Recipe

    @property
    def name(self) -> str:
        """Unique among all rows; also a file's name."""
        return self.recipe.name


def rows(iterations: int | None = None) -> list[Row]:
    """All rows, those of 8 bits first; where iterations are given, rounding is learned in so many."""
    return [
        Row(method, bits, _with(quant.load_recipe(name), iterations))
        for bits, methods in BASES.items()
        for method, name in methods.items()
    ]


def _with(recipe: quant.Recipe, iterations: int | None) -> quant.Recipe:
    if iterations is None or not recipe.learns:
        return recipe
    return recipe.model_copy(update={"rounding": recipe.rounding.model_copy(update={"iterations": iterations})})
