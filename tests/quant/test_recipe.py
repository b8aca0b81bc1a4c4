"""Recipes: the built-in ones load, rules decide in order, and what a recipe cannot say is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.errors import RecipeError
from quant.recipe import Recipe, Weights, builtin_recipes, load_recipe, parse


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
        assert (scheme.weights.bits, scheme.activations.bits, scheme.activations.follows_time) == (8, 8, False)


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


TOKEN = '[activations]\ngrain = "token"\n'
EACH = '[weights]\nranges = "each"\n' + TOKEN
SMOOTH = '[smoothing]\nmethod = "fixed"\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[weights]\nzero_point = "channel"', "zero points of channels go with ranges"),
        ('[weights]\nzero_point = "channel"\nranges = "each"\nrange = "mse"', "zero points of channels go with ranges"),
        ('[activations]\nzero_point = "token"', 'zero_point "token" needs grain "token"'),
        (TOKEN + 'steps = "each"', "each token has its own scale"),
        ("[activations]\nleast_gain = 0.1", "least_gain is about scales that follow time"),
        (TOKEN + 'range = "mse"', "each token has its own scale"),
        (TOKEN + "bits = 32", "stay float"),
        (TOKEN + "[rounding]\nactivation_iterations = 5", "no scale is stored that could learn"),
        (EACH, "rotation or smoothing is needed"),
        (EACH + SMOOTH + '[rounding]\nmethod = "adaround"', 'rounding.method must be "nearest"'),
        ("split_skips = true\n" + EACH + SMOOTH, "split_skips cannot be with weights.ranges"),
        ('[weights]\nranges = "each"\n' + SMOOTH, 'activations.grain must be "token"'),
        (EACH + '[rotation]\nmethod = "learned"', 'rotation.method cannot be "learned"'),
        (EACH + '[rotation]\nmethod = "greedy"\nonline = "helpful"', "all are computed as they come"),
        (
            EACH + SMOOTH + '[ranges]\nmethod = "dp"',
            'ranges.method "dp" divides time by the error of activation scales',
        ),
        (EACH + SMOOTH + '[[rules]]\nmatch = ["x"]\nweights = { bits = 8 }', "weights.ranges must be the same"),
        (EACH + SMOOTH + "exponents = [0.1, 0.2]", "2 exponents for 20 ranges"),
        (EACH + SMOOTH + "exponents = [0.1, 1.2]\n[ranges]\ncount = 2", "exponents must lie in 0 to 1"),
        (EACH + '[smoothing]\nmethod = "search"\nexponents = [0.1]\n[ranges]\ncount = 1', "exponents go with"),
        (SMOOTH + "exponents = [0.1]\n", "exponents go with"),
        ("[ranges]\ncount = 3", "neither activations.steps"),
        ("[rotation]\nblock = 64", "its fields say nothing while method is"),
        ("[smoothing]\nexponent = 0.3", "its fields say nothing while method is"),
        ('scope = "temporal"\n' + SMOOTH, 'scope "temporal" leaves float what could be rotated'),
        ('float_in = "bfloat16"\n' + EACH + SMOOTH, "float_in: the reference backend"),
        ('float_in = "bfloat16"\nscope = "none"', "float_in: the torch backend"),
        ('upsampling = "polyphase"\n' + EACH + SMOOTH, "upsampling: the reference backend"),
        ('upsampling = "polyphase"\nscope = "none"', "upsampling: the torch backend"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        parse(f'name = "x"\n{text}', "here")


def test_a_grain_of_tokens_and_zero_points_of_channels_have_one_range() -> None:
    recipe = parse(f'name = "x"\n{EACH}{SMOOTH}[ranges]\ncount = 2', "here")
    assert recipe.activations.range == "minmax"
    assert not recipe.activations.follows_time
    assert parse('name = "x"\n[activations]\nsteps = "ranges"', "here").activations.follows_time
    assert Weights(zero_point="channel", ranges="each").range == "max"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_recipe_knows_what_runs_it() -> None:
    assert load_recipe("w8a8").backend == load_recipe("smoothquant-w4a4").backend == "openvino"
    assert load_recipe("trdq-published").backend == load_recipe("vidit-q-like").backend == "reference"
    assert load_recipe("float-cfg").backend == "torch"
    by_rule = 'name = "x"\n[[rules]]\nmatch = ["a"]\nactivations = { grain = "token", zero_point = "token" }'
    assert parse(by_rule, "here").backend == "reference"


def test_rules_read_names_as_they_are() -> None:
    recipe = parse('name = "x"\n[[rules]]\nmatch = ["*.proj"]\nkeep = "float"', "here")
    assert recipe.decide("a.proj").scheme is None
    assert recipe.decide("a.proj.inner").scheme is not None  # a model may have a layer of that name


def test_the_fast_form_of_a_recipe_learns_nothing() -> None:
    fast = parse('name = "x"\n[rotation]\nmethod = "learned"\n[rounding]\nmethod = "adaround"', "here").fast()
    assert (fast.rotation.method, fast.rounding.method) == ("hadamard", "nearest")
    assert load_recipe("trdq-w4a8").fast().rotation == load_recipe("trdq-w4a8").rotation


def test_unknown_recipes_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'w9a9'; known: .*w8a8"):
        load_recipe("w9a9")
    with pytest.raises(RecipeError, match="no recipe file at"):
        load_recipe(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text('name = "mine"')
    assert load_recipe(tmp_path / "mine.toml").name == "mine"
