"""Recipes against models: what a recipe names must be there, and be possible, before any work is done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.tiny_denoisers import tiny_denoiser
from quant.check import check_recipe
from quant.errors import RecipeError
from quant.recipe import builtin_recipes, load_recipe, parse

TOKEN = '[activations]\ngrain = "token"\nzero_point = "token"\n'
EACH = '[weights]\nranges = "each"\n[activations]\ngrain = "token"\n[smoothing]\nmethod = "fixed"\n'


class Odd(nn.Module):
    """Layers of widths 12 and 15, and a block of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = nn.Linear(12, 15), nn.Linear(15, 12)
        self.block = nn.Module()
        for name in ("to_q", "to_k", "to_v"):
            self.block.add_module(name, nn.Linear(12, 12))


def meta() -> nn.Module:
    with torch.device("meta"):
        return Odd()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[guidance]\nmethod = "given"\nsteps = "BRN"', "guidance.steps are 3 letters for a schedule of 4 steps"),
        (
            '[guidance]\nmethod = "maps"\nblocks = ["block", "blokc*"]',
            r"guidance.blocks: no attention module is named blokc\*",
        ),
        (
            '[rotation]\nmethod = "hadamard"\nmatch = ["even", "odd"]',
            "odd has 15 input channels, which no block of two",
        ),
        ('[rotation]\nmethod = "greedy"\nmatch = ["*.to_qq"]', r"rotation.match: no layer is named \*.to_qq"),
        ('[[rules]]\nmatch = ["evn", "odd2"]\nweights = { bits = 4 }', "rules: no layer is named evn, odd2"),
    ],
)
def test_what_does_not_fit_a_model_is_refused(text: str, fault: str) -> None:
    recipe = parse(f'name = "x"\n{text}', "here")
    with pytest.raises(RecipeError, match=rf"recipe x does not fit Odd: .*{fault}"):
        check_recipe(recipe, meta(), schedule_steps=4)


def test_all_faults_are_told_at_once() -> None:
    text = '[rotation]\nmethod = "greedy"\nmatch = ["odd"]\n[[rules]]\nmatch = ["none"]\nweights = { bits = 4 }'
    with pytest.raises(RecipeError, match=r"15 input channels.*; rules: no layer is named none"):
        check_recipe(parse(f'name = "x"\n{text}', "here"), meta())


@pytest.mark.parametrize(
    "text",
    [
        '[guidance]\nmethod = "given"\nsteps = "BRNB"',
        '[guidance]\nmethod = "maps"\nblocks = ["b*"]',
        '[rotation]\nmethod = "hadamard"',  # matches the odd layer too, which stays as it is
        '[rotation]\nmethod = "hadamard"\nmatch = ["*dd", "even"]',
        '[[rules]]\nmatch = ["evn", "odd"]\nweights = { bits = 4 }',
    ],
)
def test_what_fits_passes(text: str) -> None:
    assert check_recipe(parse(f'name = "x"\n{text}', "here"), meta(), schedule_steps=4) == ()


def test_the_length_of_a_plan_is_checked_where_the_schedule_is_known() -> None:
    recipe = parse('name = "x"\n[guidance]\nmethod = "given"\nsteps = "BRN"', "here")
    assert check_recipe(recipe, meta()) == ()


@pytest.mark.parametrize(
    ("text", "what"), [(TOKEN, "a zero point for each token"), (EACH, "weights of their own for each range of time")]
)
def test_what_kernels_cannot_run_is_refused_for_openvino(text: str, what: str) -> None:
    recipe = parse(f'name = "x"\n{text}', "here")
    with pytest.raises(RecipeError, match=f"{what} are run by the reference backend alone"):
        check_recipe(recipe, meta(), backend="openvino")
    assert check_recipe(recipe, meta(), backend="reference") == check_recipe(recipe, meta()) == ()


def test_rules_that_keep_nothing_are_told() -> None:
    text = '[[rules]]\nmatch = ["odd"]\nkeep = "float"\n'
    text += '[[rules]]\nmatch = ["conv_in", "first*"]\nkeep = "float"\nbecause = "first"\n'
    notes = check_recipe(parse(f'name = "x"\n{text}', "here"), meta())
    assert notes == ("no layer is named conv_in, first*: the rule about it (first) has no effect",)


@pytest.mark.parametrize("name", builtin_recipes())
@pytest.mark.parametrize("family", ["sd15", "pixart-sigma"])
def test_built_in_recipes_fit_unets_and_transformers(name: str, family: str) -> None:
    check_recipe(load_recipe(name), tiny_denoiser(family)[0])
