"""A recipe written as text is the same recipe when it is read: every one that comes with the library, and odd ones."""

from __future__ import annotations

import pytest

import quant
from quant.recipe import Recipe, Rule, Weights, parse
from quant.recipe_text import text_of
from quant.tuning.formats import FLOAT, Format, tuned


@pytest.mark.parametrize("name", quant.builtin_recipes())
def test_built_in_recipes_survive(name: str) -> None:
    recipe = quant.load_recipe(name)
    assert parse(text_of(recipe), "text") == recipe


def test_quotes_lists_and_rules_survive() -> None:
    rules = (Rule(match=("a.b", "*c"), weights=Weights(bits=3)), Rule(match=("x",), keep="float", because='say "why"'))
    recipe = Recipe(name="odd", description='tab\t, quote ", umlaut ü', rules=rules)
    assert parse(text_of(recipe), "text") == recipe


def test_a_tuned_recipe_survives_and_says_each_format_once() -> None:
    choice = {"a.0": Format(3, "static"), "a.1": Format(3, "static"), "b": FLOAT, "c": Format(8, "token")}
    recipe = tuned(quant.load_recipe("trdq-w4a8"), "mine", "found", choice)
    assert parse(text_of(recipe), "text") == recipe
    assert [rule.match for rule in recipe.rules[:3]] == [("a.0", "a.1"), ("b",), ("c",)]
    kept, coarse = recipe.decide("b"), recipe.decide("a.1").scheme
    assert kept.scheme is None and "tuned" in kept.because
    assert coarse is not None and (coarse.weights.bits, coarse.activations.bits) == (3, 8)
    fine = recipe.decide("c").scheme
    assert fine is not None and (fine.weights.bits, fine.activations.grain) == (8, "token")
    assert recipe.sensitive.macs == 0
