"""Recipes: the built-in ones load, rules decide in order, and what a recipe cannot say is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.errors import RecipeError
from quant.recipe import builtin_recipes, load_recipe, parse


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_load_under_their_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_w8a8_keeps_the_ends_of_unets_and_transformers_float_and_nothing_in_between() -> None:
    recipe = load_recipe("w8a8")
    for kept in ("conv_in", "conv_out", "pos_embed.proj", "proj_out", "time_embedding.linear_1"):
        decision = recipe.decide(kept)
        assert decision.scheme is None
        assert decision.because
    for quantized in (
        "down_blocks.0.attentions.0.proj_out",
        "mid_block.resnets.0.conv1",
        "transformer_blocks.3.ff.net.2",
    ):
        scheme = recipe.decide(quantized).scheme
        assert scheme is not None
        assert scheme.text == "s8 per channel, u8 per tensor"


def test_the_first_rule_that_matches_decides() -> None:
    recipe = parse('name = "x"\n[[rules]]\nmatch = ["a.*"]\n[[rules]]\nmatch = ["*"]\nkeep = "float"', "here")
    assert recipe.decide("a.b").scheme is not None
    assert recipe.decide("b.a").because == "rule *"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('name = "x"\nweight = 3', "weight: Extra inputs"),
        ('name = "x"\n[weights]\nbits = 16', "weights.bits: Input should be less than or equal to 8"),
        ('name = "x"\n[activations]\nrange = "widest"', "activations.range: Input should be"),
        ('name = "../x"', "name: String should match pattern"),
        ('name = "x"\nformat = 2', "format: Input should be 1"),
        ("name = ", "here is no TOML"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused_by_name(text: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parse(text, "here")


def test_unknown_recipes_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'w9a9'; known: .*w8a8"):
        load_recipe("w9a9")
    with pytest.raises(RecipeError, match="no recipe file at"):
        load_recipe(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text('name = "mine"')
    assert load_recipe(tmp_path / "mine.toml").name == "mine"
