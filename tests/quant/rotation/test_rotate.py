"""Rotating modules: the same output in every family, folded or not; by seed; by the recipe; reported as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends.call import call_module
from quant.layers import quantizable_layers
from quant.metrics import relative_error
from quant.recipe import Recipe, parse
from quant.rotation.attach import transformed_layers
from quant.rotation.rotate import rotate_, rotates
from quant.temporal.discover import discover

HADAMARD, SMOOTH = '[rotation]\nmethod = "hadamard"\n', '[smoothing]\nmethod = "fixed"\n'
GREEDY = '[rotation]\nmethod = "greedy"\nblock = 16\n'
ONLINE = HADAMARD + "fold = false\n"


def recipe_of(text: str) -> Recipe:
    return parse(f'name = "tests"\n{text}', "the tests' recipe")


def answering(*calls: quant.Call) -> Callable[[Callable[[quant.Call], Tensor]], None]:
    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for call in calls:
            answer(call)

    return run


def output(module: nn.Module, call: quant.Call) -> Tensor:
    with torch.no_grad():
        return call_module(module, call)


def tiny(name: str) -> tuple[nn.Module, quant.Call]:
    return tiny_denoiser(name, rows=1 if name == "minimax-h3" else 2)  # that one packs its rows into one


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_every_family_computes_the_same(name: str) -> None:
    module, call = tiny(name)
    truth = output(module, call)
    for text in (HADAMARD + SMOOTH, GREEDY + "fold = false\n" + SMOOTH):
        changed = copy.deepcopy(module)
        report = rotate_(changed, answering(call), recipe_of(text))
        assert relative_error(output(changed, call), truth) < 1e-5
        folded = "folded" in {place for layer in report.layers for place in (layer.rotation, layer.factors)}
        assert folded == ("fold = false" not in text)
        assert report.count("online") > 0


def test_folded_and_online_are_the_same_change() -> None:
    """A layer is fed the same either way: what is folded is what would be computed."""
    module, call = tiny("pixart-sigma")
    folded, online = copy.deepcopy(module), copy.deepcopy(module)
    report = rotate_(folded, answering(call), recipe_of(HADAMARD + "block = 8\n"))
    rotate_(online, answering(call), recipe_of(ONLINE + "block = 8\n"))
    names = [layer.name for layer in report.layers if layer.rotation == "folded"]
    assert len(names) == 8
    inputs = [inputs_of(module, call, names) for module in (folded, online)]
    for name in names:
        assert torch.allclose(inputs[0][name], inputs[1][name], atol=1e-5), name
        assert not torch.allclose(inputs[0][name], inputs_of(module, call, names)[name], atol=1e-2)


def inputs_of(module: nn.Module, call: quant.Call, names: list[str]) -> dict[str, Tensor]:
    """What layers read, those behind a transform what comes out of it."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:
        part: Any = module.get_submodule(name)
        part = getattr(part, "inner", part)
        handles.append(part.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, given[0])))
    output(module, call)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("text", [HADAMARD, GREEDY + SMOOTH])
def test_the_same_seed_gives_the_same_weights(text: str) -> None:
    states = []
    for seed in (3, 3, 4):
        module, call = tiny("sd3")
        rotate_(module, answering(call), recipe_of(text), seed=seed)
        states.append(module.state_dict())
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())


def test_temporal_layers_and_those_that_rules_keep_are_fed_what_they_were_fed() -> None:
    module, call = tiny("sd3")
    temporal = {leaf.name for leaf in discover(module, call)}
    rule = '[[rules]]\nmatch = ["*.attn.to_q"]\nkeep = "float"\n'
    report = rotate_(module, answering(call), recipe_of(HADAMARD + SMOOTH + rule))
    changed = set(transformed_layers(module))
    assert changed
    assert not changed & temporal
    assert not any(name.endswith("attn.to_q") for name in changed)
    told = {layer.name: layer for layer in report.layers}
    assert {told[name].because for name in temporal & told.keys()} == {"temporal"}
    assert not any(name.endswith("attn.to_q") for name in told)


def test_layers_that_read_the_same_share_one_transform_and_count_once() -> None:
    module, call = tiny("pixart-sigma")
    report = rotate_(module, answering(call), recipe_of(ONLINE))
    told = {layer.name: layer for layer in report.layers}
    q, k, v = (f"transformer_blocks.0.attn1.to_{name}" for name in "qkv")
    found = transformed_layers(module)
    assert found[q].transform is found[k].transform is found[v].transform
    assert (told[q].like, told[k].like, told[v].like) == ("", q, q)
    assert (told[q].macs, told[k].macs) == (16 * 32 * 32, 0), "16 tokens of 32 channels in one block"
    assert told[f"{q[:-4]}to_q"].block == 32
    texts = [f"transformer_blocks.{block}.attn2.to_{name}" for block in (0, 1) for name in "kv"]
    assert [told[name].like for name in texts] == ["", *[texts[0]] * 3], "of all blocks"
    layers, macs = quantizable_layers(tiny("pixart-sigma")[0]), 0
    for name, layer in layers.items():
        tokens = 1 if "adaln" in name else 7 if "caption" in name or name in texts else 16
        macs += tokens * layer.weight.numel()
    assert report.online_share == pytest.approx(sum(layer.macs for layer in report.layers) / macs)


def test_recipes_name_layers_and_say_what_is_computed_online() -> None:
    module, call = tiny("sd15")
    only = rotate_(copy.deepcopy(module), answering(call), recipe_of(ONLINE + 'match = ["*.ff.net.2"]\n'))
    assert {layer.name[-8:] for layer in only.layers if layer.rotation != "none"} == {"ff.net.2"}
    assert "the recipe rotates other layers" in {layer.because for layer in only.layers}
    free = copy.deepcopy(module)
    report = rotate_(free, answering(call), recipe_of(HADAMARD + 'online = "none"\n'))
    assert (report.online_share, transformed_layers(free)) == (0.0, {})
    assert report.count("folded") == 8
    told = {layer.name: layer for layer in report.layers}
    values = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    assert told[f"{values}.to_out.0"].into == (f"{values}.to_v",)
    assert "it cannot be folded, and the recipe computes no rotation online" in {one.because for one in report.layers}


def outliers(module: nn.Module) -> nn.Module:
    """With two channels of every attention's input that are far larger than others."""
    for name, part in module.named_modules():
        if name.endswith("norm1") and isinstance(part, nn.LayerNorm):
            part.weight.data[[1, 5]] *= 40
    return module


def test_only_helpful_rotations_are_computed() -> None:
    module, call = tiny("sd15")
    text = HADAMARD + 'online = "helpful"\nleast_gain = 0.3\n[activations]\nbits = 4\nrange = "minmax"\n'
    report = rotate_(outliers(module), answering(call), recipe_of(text))
    told = {layer.name: layer for layer in report.layers}
    queries = [layer for name, layer in told.items() if name.endswith("attn1.to_q")]
    assert all(layer.rotation == "online" and layer.gain is not None and layer.gain > 0.3 for layer in queries)
    left = [layer for layer in told.values() if layer.gain is not None and layer.gain < 0.3 and not layer.into]
    assert left
    assert all(layer.rotation == "none" for layer in left)
    assert all("of its squared error" in layer.because or "to its squared error" in layer.because for layer in left)
    assert report.outliers_after < 0.7 * report.outliers_before


class Mlp(nn.Module):
    """[B, 9, 64] to the same: a norm with outlying channels, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(128, 64)
        self.norm.weight.data[[3, 40]] = 20.0

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        output: Tensor = self.down(value * nn.functional.gelu(gate))
        return output


SEARCH = '[smoothing]\nmethod = "search"\n'
LEARNED = '[rotation]\nmethod = "learned"\niterations = 20\n'


@pytest.mark.parametrize("text", [SEARCH, HADAMARD, GREEDY, LEARNED, HADAMARD + SEARCH, GREEDY + SEARCH])
def test_rotation_and_smoothing_lower_the_error_of_few_bits(text: str) -> None:
    torch.manual_seed(0)
    module = Mlp().eval().requires_grad_(False)
    call = quant.Call({"x": torch.randn(16, 9, 64)}, quant.StepClock.unknown(16))
    truth, errors = output(module, call), []
    for own in ("", text):
        changed, recipe = copy.deepcopy(module), recipe_of(own + "[activations]\nbits = 4\n")
        rotate_(changed, answering(call), recipe)
        assert relative_error(output(changed, call), truth) < 1e-5
        quant.quantize_(changed, recipe, quant.calibrate_for(changed, answering(call), recipe))
        errors.append(relative_error(output(changed, call), truth))
    assert errors[1] < 0.8 * errors[0]


def test_searched_exponents_are_told_and_none_is_taken_where_none_helps() -> None:
    module, call = tiny("pixart-sigma")
    report = rotate_(module, answering(call), recipe_of('[smoothing]\nmethod = "search"\n'))
    exponents = {layer.exponent for layer in report.layers}
    assert exponents - {None} <= {step / 20 for step in range(21)}
    assert len(exponents) > 2
    assert all((layer.exponent is None) == (layer.factors == "none") for layer in report.layers)


def test_tables_of_integers_take_up_no_factors() -> None:
    module, call = tiny("sd3")
    for storage, folds in (("int8", False), ("float32", True)):
        text = f'{SMOOTH}[temporal]\nmaintenance = "cache"\nstorage = "{storage}"\n'
        report = rotate_(copy.deepcopy(module), answering(call), recipe_of(text))
        query = next(layer for layer in report.layers if layer.name == "transformer_blocks.0.attn.to_q")
        assert query.factors == ("folded" if folds else "online")
        assert ("table of int8" in query.because) != folds


def test_nothing_is_done_where_nothing_is_asked() -> None:
    module, call = tiny("dit")
    before = copy.deepcopy(module.state_dict())

    def never(answer: object) -> None:
        raise AssertionError("nothing needs to run")

    published = '[weights]\nranges = "each"\n[activations]\ngrain = "token"\n' + SMOOTH
    for text in ("", published):
        assert not rotates(recipe_of(text))
        assert rotate_(module, never, recipe_of(text)).layers == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(quant.QuantError, match="never called"):
        rotate_(module, answering(), recipe_of(SMOOTH))
    with pytest.raises(quant.QuantError, match=r"torch\.bfloat16 is not rotated"):
        rotate_(module.to(torch.bfloat16), answering(call), recipe_of(SMOOTH))


def test_grouped_convolutions_are_left() -> None:
    module, call = tiny("sana")
    report = rotate_(module, answering(call), recipe_of(HADAMARD))
    grouped = [layer for layer in report.layers if layer.name.endswith("conv_depth")]
    assert len(grouped) == 2
    assert all(layer.because.startswith("a grouped convolution") for layer in grouped)


def test_split_inputs_are_left() -> None:
    module, call = tiny("sd15")
    report = rotate_(module, answering(call), recipe_of("split_skips = true\n" + HADAMARD))
    told = {layer.name: layer for layer in report.layers}
    assert told["up_blocks.0.resnets.0.conv1"].because.startswith("its input is concatenated")
    assert "up_blocks.0.resnets.0.conv1" not in transformed_layers(module)


def test_factors_of_many_blocks_are_folded_where_they_do_as_well() -> None:
    """What both blocks' attention reads is scaled alike, by their tables and the shared projection, or not at all."""
    module, call = tiny("wan")
    truth = output(module, call)
    reports = []
    elsewhere = HADAMARD + 'online = "helpful"\nmatch = ["proj_out"]\n'
    for text in (SMOOTH + elsewhere, SMOOTH, SMOOTH + HADAMARD):
        changed = copy.deepcopy(module)
        report = rotate_(changed, answering(call), recipe_of(text))
        assert relative_error(output(changed, call), truth) < 1e-5
        reports.append({layer.name: layer for layer in report.layers})
    together, computed, apart = (report["blocks.0.attn1.to_q"] for report in reports)
    assert (together.rotation, together.factors, together.macs) == ("none", "folded", 0)
    assert set(together.into) == {f"blocks.{i}.scale_shift_table" for i in (0, 1)} | {"condition_embedder.time_proj"}
    assert together.because == "factors of many blocks, folded, do as well"
    assert (computed.rotation, computed.factors) == ("none", "online")  # by default all is computed
    assert (apart.rotation, apart.factors) == ("online", "online")
