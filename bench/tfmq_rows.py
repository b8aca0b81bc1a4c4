"""Which rows the table of temporal maintenance has, each a recipe, at equal iterations. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import quant
from quant.recipe import Sensitive, Temporal

Bits = tuple[int, int]
"""Of weights and activations; 32 activations are float."""

SEEDS: dict[Bits, tuple[int, ...]] = {(4, 8): (0, 1, 2), (8, 8): (0,), (4, 32): (0,)}
"""Calibration seeds by bits."""

METHODS = ("rtn", "ptq4dm", "qdiffusion", "tiar", "tiar+fsc", "cache", "selected")
"""The first three are rivals that treat temporal layers as all others; the others are TFMQ-DM's and ours."""

RIVALS = METHODS[:3]
MIXED = {"qdiffusion-mixed": "qdiffusion", "selected-mixed": "selected"}
"""W4A8 rows whose most sensitive layers have 8-bit weights, by the row that they are otherwise: a rival's and ours."""

SPARED = quant.load_recipe("tfmq-w4a8").sensitive
"""Which layers those are: as in the recipe that is shipped."""
ABLATION = ("rtn", "tiar", "tiar+fsc", "cache", "selected")
"""TFMQ-DM's own ablation: everything unrelated to time is float."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table before it is measured."""

    method: str
    bits: Bits
    seed: int
    recipe: quant.Recipe
    scope: str = "all"

    @property
    def name(self) -> str:
        """Unique among all rows; also a file's name."""
        return self.recipe.name

    @property
    def group(self) -> str:
        """Rows of a group share calibration statistics."""
        rounding = self.recipe.rounding
        return f"{self.seed}-{rounding.method}-{rounding.timesteps}-{self.recipe.split_skips}"


def rows(iterations: int, temporal_iterations: int) -> list[Row]:
    """All rows, those that share work next to each other."""
    main = [
        _row(method, bits, seed, iterations, temporal_iterations)
        for bits, seeds in SEEDS.items()
        for seed in seeds
        for method in METHODS
    ]
    main += [_mixed(name, seed, iterations, temporal_iterations) for seed in SEEDS[4, 8] for name in MIXED]
    apart = [_row(method, (4, 8), 0, iterations, temporal_iterations, "temporal") for method in ABLATION]
    return sorted(main + apart, key=lambda row: (row.seed, row.group))


def _row(method: str, bits: Bits, seed: int, iterations: int, temporal_iterations: int, scope: str = "all") -> Row:
    base = quant.load_recipe(f"{method}-w{bits[0]}a{bits[1]}" if method in RIVALS else "tfmq-w4a8")
    rounding = {"iterations": iterations}
    if base.rounding.activation_iterations:
        rounding["activation_iterations"] = max(1, iterations // 4)
    changes: dict[str, Any] = {"rounding": base.rounding.model_copy(update=rounding)}
    if method not in RIVALS:
        steps = "shared" if method == "tiar" else "each"
        timed = {"bits": bits[1], "steps": steps, "branches": steps}
        changes["weights"] = base.weights.model_copy(update={"bits": bits[0]})
        changes["activations"] = base.activations.model_copy(update=timed)
        changes["sensitive"] = Sensitive()
        changes["temporal"] = _temporal(method, bits, temporal_iterations)
    label = f"{method.replace('+', '-')}-w{bits[0]}a{bits[1]}-{scope}-{seed}"
    return Row(method, bits, seed, base.model_copy(update={**changes, "name": label, "scope": scope}), scope)


def _mixed(name: str, seed: int, iterations: int, temporal_iterations: int) -> Row:
    plain = _row(MIXED[name], (4, 8), seed, iterations, temporal_iterations)
    recipe = plain.recipe.model_copy(update={"sensitive": SPARED, "name": f"{name}-w4a8-all-{seed}"})
    return Row(name, (4, 8), seed, recipe)


def _temporal(method: str, bits: Bits, iterations: int) -> Temporal:
    same: dict[str, Any] = {"bits": bits[0], "activation_bits": bits[1], "iterations": iterations}
    ways: dict[str, dict[str, Any]] = {
        "tiar": {"maintenance": "tib", "rounding": "adaround", "steps": "shared"},
        "tiar+fsc": {"maintenance": "tib", "rounding": "adaround", "steps": "each"},
        "cache": {"maintenance": "cache", "storage": "float32"},
        "selected": {"maintenance": "select", "rounding": "adaround", "steps": "each", "storage": "int8"},
    }
    return Temporal.model_validate({**same, **ways[method]})
