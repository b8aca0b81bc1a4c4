"""What a recipe says that cannot be together, whatever the model. Must not know models; `quant.check` does.

A field that would be ignored is a contradiction too: whoever wrote it expects it to count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quant.recipe_parts import Ranges, Rotation, Smoothing

if TYPE_CHECKING:
    from quant.recipe import Recipe


def contradictions(recipe: Recipe) -> Iterator[str]:
    """Each fault in words, with the fields' names."""
    each = {scheme.weights.ranges for scheme in recipe.schemes}
    if len(each) > 1:
        yield "weights.ranges must be the same for the recipe, all rules, and sensitive layers"
    elif each == {"each"}:
        yield from _of_weights_for_each_range(recipe)
    yield from _of_ranges(recipe, each == {"each"})
    yield from _of_exponents(recipe, each == {"each"})
    by_token = any(scheme.activations.grain == "token" for scheme in recipe.schemes)
    if by_token and recipe.rounding.activation_iterations:
        yield 'rounding.activation_iterations: with grain "token" no scale is stored that could learn'
    if recipe.rotation.method == "none" and recipe.rotation != Rotation():
        yield 'rotation: its fields say nothing while method is "none"'
    if recipe.smoothing.method == "none" and recipe.smoothing != Smoothing():
        yield 'smoothing: its fields say nothing while method is "none"'
    yield from _of_precision(recipe)
    if recipe.float_in != "float32" and recipe.backend != "openvino":
        yield f"float_in: the {recipe.backend} backend, which runs such recipes, computes in float32"
    if recipe.upsampling != "direct" and recipe.backend != "openvino":
        yield f"upsampling: the {recipe.backend} backend, which runs such recipes, computes it directly"
    if recipe.scope != "all" and (recipe.rotation.method, recipe.smoothing.method) != ("none", "none"):
        yield f'scope "{recipe.scope}" leaves float what could be rotated or smoothed'


def _of_weights_for_each_range(recipe: Recipe) -> Iterator[str]:
    """What is not published with weights that are rounded for each range of time, and not built."""
    told = 'with weights.ranges "each"'
    if recipe.rounding.method != "nearest":
        yield f'rounding.method must be "nearest" {told}'
    if recipe.split_skips:
        yield f"split_skips cannot be {told}"
    if any(scheme.activations.grain != "token" and scheme.activations.bits != 32 for scheme in recipe.schemes):
        yield f'activations.grain must be "token" {told}, or inputs float'
    if (recipe.rotation.method, recipe.smoothing.method) == ("none", "none"):
        yield f"rotation or smoothing is needed {told}: without, all ranges have the same weights"
    if recipe.rotation.online != "all":
        yield f'rotation.online must be "all" {told}: all are computed as they come, none is folded'
    if recipe.rotation.method == "learned":
        yield f'rotation.method cannot be "learned" {told}: it is trained for all times'


def _of_ranges(recipe: Recipe, each: bool) -> Iterator[str]:
    by_range = any(scheme.activations.steps == "ranges" for scheme in recipe.schemes)
    if recipe.ranges != Ranges() and not by_range and not each:
        yield 'ranges are given, but neither activations.steps is "ranges" nor weights.ranges "each"'
    if recipe.ranges.method == "dp" and each:
        yield 'ranges.method "dp" divides time by the error of activation scales: weights.ranges must be "shared"'


def _of_exponents(recipe: Recipe, each: bool) -> Iterator[str]:
    given, ranges = recipe.smoothing.exponents, recipe.ranges
    if not given:
        return
    if recipe.smoothing.method != "fixed" or not each:
        yield 'smoothing.exponents go with smoothing.method "fixed" and weights.ranges "each"'
    count = len(ranges.bounds) if ranges.method == "given" else ranges.count
    if len(given) != count:
        yield f"smoothing.exponents: {len(given)} exponents for {count} ranges"
    if any(not 0 <= exponent <= 1 for exponent in given):
        yield "smoothing.exponents must lie in 0 to 1"


def _of_precision(recipe: Recipe) -> Iterator[str]:
    form = recipe.precision.form
    if form != "none" and recipe.scope == "none":
        yield 'precision: with scope "none" all steps run by the float weights'
    if form == "w8a8" and recipe.scope == "temporal":
        yield 'precision.form must be "float" with scope "temporal"'
    if form == "w8a8" and all(min(one.weights.bits, one.activations.bits) >= 8 for one in recipe.schemes):
        yield 'precision.form "w8a8" is no more exact than the recipe: it has 8 bits everywhere'
