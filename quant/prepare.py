"""What a recipe needs to know of a model before quantizing. Must not know any model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.calibrate import Answer, SampleWish, Statistics, calibrate
from quant.errors import CalibrationError
from quant.recipe import Recipe
from quant.recipe_parts import Guidance
from quant.rotation.rotate import rotates
from quant.splits import find_splits


def reconstruction_key(recipe: Recipe) -> str:
    """Equal for two recipes exactly when the same statistics give them the same reconstructed weights.

    Grids of inputs matter only where they are learned, or decide which layers are sensitive: weights are reconstructed
    on float inputs. What becomes of temporal layers that are treated apart does not matter. Where inputs are rotated or
    smoothed, everything may.
    """
    if rotates(recipe):
        changes = {"name": "", "description": "", "guidance": Guidance(), "float_in": "float32"}
        return repr(recipe.model_copy(update=changes))
    rounding = recipe.rounding.model_copy(update={"activation_iterations": 0})
    inputs_matter = recipe.rounding.activation_iterations > 0 or recipe.sensitive.macs > 0
    learned = (recipe.rounding.activation_iterations, recipe.activations, recipe.ranges) if inputs_matter else ()
    apart = recipe.temporal.maintenance != "none"
    rules = [
        (rule.match, rule.keep, rule.weights, rule.activations if inputs_matter else None) for rule in recipe.rules
    ]
    return repr((recipe.weights, rounding, learned, rules, recipe.split_skips, recipe.scope, apart, recipe.sensitive))


class _Enough(Exception):
    """The first call was seen."""


Run = Callable[[Answer], object]
"""Has every call of a typical run answered."""


def calibrate_for(module: nn.Module, run: Run, recipe: Recipe, *, more: Run | None = None, seed: int = 0) -> Statistics:
    """What `quantize_` needs to know by this recipe: `calibrate` with what the recipe asks for.

    `more` gives rows to learn rounding on, where the recipe learns it, beside those of `run`.

    Raises:
        CalibrationError: the module was never called, or a layer was fed NaN or infinity.
    """
    splits = find_splits(module, first_call(run)) if recipe.split_skips else None
    wish = None
    if recipe.learns:
        wish = SampleWish(recipe.rounding.samples, recipe.rounding.timesteps)
    timed = any(scheme.activations.follows_time for scheme in recipe.schemes)
    channels = any(scheme.weights.ranges == "each" for scheme in recipe.schemes)
    return calibrate(module, run, by_time=timed, splits=splits, samples=wish, channels=channels, more=more, seed=seed)


def first_call(run: Run) -> Call:
    """The first call that a run makes, which is stopped there.

    Raises:
        CalibrationError: it makes none.
    """
    seen: list[Call] = []

    def answer(call: Call) -> Tensor:
        seen.append(call.take(torch.tensor([0])))
        raise _Enough

    with suppress(_Enough):
        run(answer)
    if not seen:
        raise CalibrationError("the model was never called while calibrating: there is nothing to quantize by")
    return seen[0]
