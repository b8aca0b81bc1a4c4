"""The more exact copy of a model's weights that a recipe's precise steps run by. Knows no model, nor what runs it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import nn

from quant.calibrate import Statistics
from quant.errors import QuantError
from quant.precision import PreciseSteps
from quant.quantize import Quantization, Work, quantize_
from quant.recipe import Activations, Recipe, Sensitive, Weights
from quant.recipe_parts import Precision, Rounding
from quant.stages import Stages

FINE_BITS: Final = 8


def precise_recipe(recipe: Recipe) -> Recipe:
    """By what the more exact copy is made where it is `w8a8`: no weight or input has fewer than 8 bits, weights are
    rounded to nearest, temporal tables are exact.
    """

    def weights(own: Weights) -> Weights:
        return own.model_copy(update={"bits": max(FINE_BITS, own.bits)})

    def activations(own: Activations) -> Activations:
        return own.model_copy(update={"bits": max(FINE_BITS, own.bits)})

    rules = tuple(
        rule.model_copy(
            update={
                "weights": None if rule.weights is None else weights(rule.weights),
                "activations": None if rule.activations is None else activations(rule.activations),
            }
        )
        for rule in recipe.rules
    )
    finer = {"bits": FINE_BITS, "activation_bits": max(FINE_BITS, recipe.temporal.activation_bits)}
    changes: dict[str, Any] = {
        "weights": weights(recipe.weights),
        "activations": activations(recipe.activations),
        "rules": rules,
        "rounding": Rounding(),
        "temporal": recipe.temporal.model_copy(update={**finer, "storage": "float32", "budget_bytes": None}),
        "precision": Precision(),
    }
    if recipe.sensitive.weights is not None:
        changes["sensitive"] = Sensitive()  # all layers have their bits
    return recipe.model_copy(update=changes)


class Copy(NamedTuple):
    """A quantized module: itself, what quantizing gave, and the recipe that it was made by."""

    module: nn.Module
    quantization: Quantization
    recipe: Recipe


@dataclass(frozen=True)
class Finer:
    """What a recipe's precise steps run by.

    Attributes:
        asked: of the recipe.
        total_steps: of the schedule that was calibrated at.
        copy: None where the float model runs them.
    """

    asked: Precision
    total_steps: int
    copy: Copy | None

    def steps(self, weights_bytes: int) -> PreciseSteps:
        """What a manifest says of them."""
        return PreciseSteps.model_validate(
            {**self.asked.model_dump(), "total_steps": self.total_steps, "weights_bytes": weights_bytes}
        )


def make_finer(module: nn.Module, recipe: Recipe, statistics: Statistics, work: Work) -> Finer | None:
    """What the precise steps of a recipe run by, made of a float module that is about to be quantized by the same
    statistics and stays as it is; None where it has no such steps.

    Raises:
        QuantError: all steps of the schedule that was calibrated at would be precise, or as `quantize_`.
    """
    asked = recipe.precision
    if asked.form == "none":
        return None
    total = int(statistics.calls[0].clock.total[0])
    if asked.first_steps + asked.last_steps >= total:
        raise QuantError(f"the recipe has {asked.first_steps + asked.last_steps} precise steps of {total}: too many")
    if asked.form == "float":
        return Finer(asked, total, None)
    own, finer = copy.deepcopy(module), precise_recipe(recipe)
    again = Work(Stages(None, ""), work.seed, work.progress)
    return Finer(asked, total, Copy(own, quantize_(own, finer, statistics, again), finer))
