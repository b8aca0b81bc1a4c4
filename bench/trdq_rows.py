"""Which rows the table of time-rotation quantization has, each a recipe for a model. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import quant
from quant.recipe import Sensitive, Temporal
from quant.recipe_parts import Guidance, Rounding

Bits = tuple[int, int]
"""Of weights and activations."""

MODELS: Final = ("shapes-dit", "shapes-unet")

SEEDS: Final[dict[tuple[str, Bits], tuple[int, ...]]] = {
    ("shapes-dit", (4, 8)): (0, 1, 2),
    ("shapes-unet", (4, 8)): (0,),
    ("shapes-dit", (8, 8)): (0,),
    ("shapes-dit", (4, 4)): (0,),
}
"""Calibration seeds by model and bits."""

BASES: Final = {
    "rtn": "rtn-w4a8",
    "smoothquant": "smoothquant-w4a8",
    "vidit-q-like": "vidit-q-like",
    "rotation": "rotation-only",
    "ranges": "ranges-only",
    "published": "trdq-published",
    "served, nearest": "trdq-w4a8",
    "served": "trdq-w4a8",
    "served, mixed": "trdq-w4a8",
    "served + cache": "trdq-w4a8",
    "served + cache + cfg": "trdq-w4a8-cfg",
}
"""Method to the built-in recipe that it is made of."""

SAMPLES: Final = 1024
"""Rows of calls that rounding is learned on."""

RIVALS: Final = ("rtn", "smoothquant", "vidit-q-like", "published")
OURS: Final = tuple(method for method in BASES if method.startswith("served"))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table before it is measured."""

    model: str
    method: str
    bits: Bits
    seed: int
    recipe: quant.Recipe

    @property
    def name(self) -> str:
        """Unique among all rows; also a file's name."""
        return f"{self.model}-{self.recipe.name}"


def rows(iterations: int) -> list[Row]:
    """All rows, in the order in which they are made: other seeds come last."""
    found = [
        Row(model, method, bits, seed, recipe_of(method, bits, seed, iterations))
        for (model, bits), seeds in SEEDS.items()
        for seed in seeds
        for method in BASES
        if method != "served, mixed" or (bits, seed) == ((4, 8), 0)
    ]
    return sorted(found, key=lambda row: row.seed)


def recipe_of(method: str, bits: Bits, seed: int, iterations: int) -> quant.Recipe:
    """The recipe of a row: a built-in one at other bits, iterations, and maintenance of temporal layers.

    Rivals leave temporal layers float, as their papers do; rtn, rotation and ranges round everything. `served` leaves
    them float too, so that `served + cache` shows what tables change. All round every other layer to the same bits, but
    for `served, mixed`, which treats sensitive layers as the shipped recipe does: at W4A8, what that is worth.
    """
    base = quant.load_recipe(BASES[method])
    changes: dict[str, Any] = {
        "name": f"{method.replace(', ', '-').replace(' + ', '-')}-w{bits[0]}a{bits[1]}-{seed}",
        "weights": base.weights.model_copy(update={"bits": bits[0]}),
        "activations": base.activations.model_copy(update={"bits": bits[1]}),
    }
    if method in OURS:
        learned = base.rounding.model_copy(update={"iterations": iterations, "samples": SAMPLES})
        changes |= {"rounding": learned, "guidance": Guidance(), "temporal": Temporal(maintenance="float")}
    if method in OURS and method != "served, mixed":
        changes["sensitive"] = Sensitive()
    if method == "served, nearest":
        changes["rounding"] = Rounding()
    if "cache" in method:
        changes["temporal"] = Temporal(maintenance="cache", bits=bits[0], activation_bits=8, storage="float32")
    if "cfg" in method:
        changes["guidance"] = base.guidance
    return base.model_copy(update=changes)
