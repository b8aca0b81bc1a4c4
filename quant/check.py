"""Whether a recipe fits a model, before any work is done on it. Knows names and shapes of layers, no numbers.

What a recipe says that cannot be together for any model is refused when it is read (`quant.recipe_checks`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from torch import nn

from quant.errors import RecipeError
from quant.guidance.share import attention_modules
from quant.layers import quantizable_layers
from quant.recipe import Recipe
from quant.rotation.channels import input_channels
from quant.rotation.hadamard import block_of


def check_recipe(
    recipe: Recipe,
    module: nn.Module,
    *,
    schedule_steps: int | None = None,
    inference_steps: int | None = None,
    backend: str | None = None,
) -> tuple[str, ...]:
    """What to tell people of a recipe that fits: rules that keep layers float, where the module has none of them.

    Args:
        recipe: to check.
        module: the float model; its parameters may be on the meta device.
        schedule_steps: how many timesteps the schedule has that it is calibrated at, where that is known.
        inference_steps: how many steps a user asks for to get that schedule, which has at least so many.
        backend: what is to run the artifact; None: the recipe's own choice.

    Raises:
        RecipeError: something that the recipe names is not there, or cannot be done; all faults are named.
    """
    layers = quantizable_layers(module)
    faults = [*_of_backend(recipe, backend), *_of_guidance(recipe, module, schedule_steps)]
    faults += [*_of_rotation(recipe, module), *_of_rules(recipe, layers), *_of_precision(recipe, inference_steps)]
    if faults:
        raise RecipeError(f"recipe {recipe.name} does not fit {type(module).__name__}: {'; '.join(faults)}")
    kept = [rule for rule in recipe.rules if rule.keep is not None and not _any(layers, rule.match)]
    return tuple(
        f"no layer is named {', '.join(rule.match)}: the rule about it ({rule.because or 'keep float'}) has no effect"
        for rule in kept
    )


def _any(names: Collection[str], patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _of_backend(recipe: Recipe, backend: str | None) -> Iterator[str]:
    if backend == "openvino" and recipe.backend == "reference":
        each = any(scheme.weights.ranges == "each" for scheme in recipe.schemes)
        what = "weights of their own for each range of time" if each else "a zero point for each token"
        yield f"layers with {what} are run by the reference backend alone, not by openvino"


def _of_guidance(recipe: Recipe, module: nn.Module, steps: int | None) -> Iterator[str]:
    plan = recipe.guidance
    if plan.steps and steps is not None and len(plan.steps) != steps:
        yield f"guidance.steps are {len(plan.steps)} letters for a schedule of {steps} steps"
    names = attention_modules(module) if plan.blocks else {}
    for pattern in plan.blocks:
        if not _any(names, [pattern]):
            yield f"guidance.blocks: no attention module is named {pattern}"


def _of_rotation(recipe: Recipe, module: nn.Module) -> Iterator[str]:
    if recipe.rotation.method == "none":
        return
    layers = quantizable_layers(module)
    for pattern in recipe.rotation.match:
        if not _any(layers, [pattern]):
            yield f"rotation.match: no layer is named {pattern}"
        elif pattern in layers:  # asked for by name; what a pattern happens to match may stay as it is, and is reported
            width = input_channels(layers[pattern])
            if block_of(width, recipe.rotation.block) == 1:
                yield f"rotation.match: {pattern} has {width} input channels, which no block of two or more divides"


def _of_rules(recipe: Recipe, layers: Collection[str]) -> Iterator[str]:
    """Rules that say how layers are quantized, and find none. Those that keep layers float name many models' ends."""
    for rule in recipe.rules:
        if rule.keep is None and not _any(layers, rule.match):
            yield f"rules: no layer is named {', '.join(rule.match)}"


def _of_precision(recipe: Recipe, steps: int | None) -> Iterator[str]:
    asked = recipe.precision.first_steps + recipe.precision.last_steps
    if steps is not None and asked >= steps:
        yield f"precision.first_steps and last_steps are {asked} of {steps} steps: none is left for the recipe itself"
