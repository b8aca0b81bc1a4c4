"""Folds: found and true in every family; false candidates are refused alone; a fold changes what it should."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends.call import call_module
from quant.metrics import relative_error
from quant.rotation import fold
from quant.rotation.attach import absorb_
from quant.rotation.fold import Fold, Folds, find_folds, fold_, restored
from quant.rotation.greedy import Blocks
from quant.rotation.hadamard import hadamard
from quant.rotation.readings import read_strands
from quant.rotation.strands import Rows
from quant.rotation.transform import InputTransform

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Values of `groups` heads, each shared by several of queries."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, size = HEADS, groups, WIDTH // HEADS
        self.to_q, self.to_k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, groups * size)
        self.to_v = nn.Linear(WIDTH, groups * size, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout()])

    def forward(self, x: Tensor) -> Tensor:
        def split(values: Tensor, heads: int) -> Tensor:
            parts = values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)
            return parts.repeat_interleave(HEADS // heads, dim=1)

        q, k, v = split(self.to_q(x), HEADS), split(self.to_k(x), self.groups), split(self.to_v(x), self.groups)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        output: Tensor = self.to_out[0](mixed)
        return output


class Misleading(nn.Module):
    """Looks like attention and is none: its values go through a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_v, self.to_out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.to_out(functional.gelu(self.to_v(x)))
        return output


class Net(nn.Module):
    """A true attention and a false one."""

    def __init__(self, groups: int = HEADS) -> None:
        super().__init__()
        self.norm, self.attention, self.false = nn.LayerNorm(WIDTH), Attention(groups), Misleading()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        output: Tensor = x + self.false(x)
        return output


def make(groups: int = HEADS) -> tuple[Net, quant.Call]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(groups).eval().requires_grad_(False)
        return net, quant.Call({"x": torch.randn(2, 5, WIDTH)}, quant.StepClock.unknown(2))


def found(net: nn.Module, call: quant.Call) -> Folds:
    return find_folds(net, read_strands(net, call), [call])


def run(net: nn.Module, call: quant.Call) -> Tensor:
    with torch.no_grad():
        return call_module(net, call)


def test_true_candidates_are_taken_and_false_ones_refused() -> None:
    net, call = make()
    before = copy.deepcopy(net.state_dict())
    folds = found(net, call)
    q, k, v = (f"attention.to_{name}" for name in "qkv")
    value = (Rows("attention.to_v", 0, WIDTH),)
    assert set(folds.found) == {
        Fold("scale", (Rows("norm", 0, WIDTH),), (q, k, v), WIDTH, WIDTH),
        Fold("scale", value, ("attention.to_out.0",), WIDTH, WIDTH),
        Fold("rotate", value, ("attention.to_out.0",), WIDTH, WIDTH // HEADS),
    }
    assert folds.refused == {"false.to_out": "changing false.to_v for it changed what the model computes"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_heads_that_share_values_are_rotated_and_not_scaled() -> None:
    net, call = make(groups=2)
    folds = [one for one in found(net, call).found if one.layers == ("attention.to_out.0",)]
    assert folds == [Fold("rotate", (Rows("attention.to_v", 0, WIDTH // 2),), ("attention.to_out.0",), WIDTH, 4)]
    truth = run(net, call)
    fold_(net, folds[0], InputTransform(WIDTH, blocks=Blocks(hadamard(4, 1))))
    assert relative_error(run(net, call), truth) < 1e-6


def test_rows_that_are_read_in_two_ways_are_not_tried() -> None:
    net, call = make()
    readings = read_strands(net, call)
    twice = Fold("scale", (Rows("norm", 0, 4),), ("false.to_v",), WIDTH, WIDTH)
    both = [one for one in fold._by_flow(readings) if one.kind == "scale"] + [twice]
    assert fold._fault(net, readings, twice, both) == "its channels of norm are read in different ways"
    no_bias = Fold("scale", (Rows("attention.to_v", 0, WIDTH, 1.0),), ("false.to_v",), WIDTH, WIDTH)
    assert "has no bias to take up" in fold._fault(net, readings, no_bias, [no_bias])
    odd = Fold("rotate", (Rows("attention.to_v", 0, 15),), ("false.to_v",), 15, 5)
    assert "no power of two divides the 5 channels" in fold._fault(net, readings, odd, [odd])


def test_weights_come_back_after_a_fault() -> None:
    net, call = make()
    before, one = copy.deepcopy(net.state_dict()), found(net, call).found[0]
    with pytest.raises(ZeroDivisionError), restored(net, [one]):
        fold_(net, one, InputTransform(WIDTH, torch.full((WIDTH,), 2.0)))
        assert not torch.equal(net.norm.weight, before["norm.weight"])
        raise ZeroDivisionError
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# by hand: attentions with projections of their output, of which values can be rotated; then the texts' projections
ROTATIONS = {
    "unet": 1, "unet-class": 1, "sd15": 8, "lcm": 8, "sdxl": 8, "pixart-sigma": 4 + 1, "pixart-sizes": 4 + 1, "dit": 2,
    "sd3": 2, "sd35-medium": 3, "flux": 2, "flux2": 2, "chroma": 2, "qwen-image": 2, "sana": 4, "z-image": 4,
    "wan": 4 + 1, "wan-ti2v": 4 + 1, "ltx": 4 + 1, "ltx-i2v": 4 + 1, "cogvideox": 2, "hunyuan-video": 3,
    "minimax-h3": 3,
}  # fmt: skip

UNREAD = {"qwen-image": "transformer_blocks.1.txt_mlp.net.0.proj"}
"""Layers whose output the model computes and throws away, in its last block."""


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_folds_of_every_family_are_true_each_alone(name: str) -> None:
    module, call = tiny_denoiser(name, rows=1 if name == "minimax-h3" else 2)
    readings, truth = read_strands(module, call), run(module, call)
    folds = find_folds(module, readings, [call])
    rotations = [one for one in folds.found if one.kind == "rotate"]
    convolutions = [one for one in rotations if any("sampler" in layer for layer in one.layers)]
    assert len(rotations) - len(convolutions) == ROTATIONS[name]
    assert not any("changed what the model computes" in why for why in folds.refused.values())
    for one in folds.found:
        change = fold._random_change(module, one, seed=7)
        with restored(module, [one]):
            fold_(module, one, change)
            assert relative_error(run(module, call), truth) < 1e-5, one
        with restored(module, [one]):  # half of it shows: the other half was what kept the output
            for layer in one.layers:
                absorb_(module.get_submodule(layer), change)  # type: ignore[arg-type]
            shows = relative_error(run(module, call), truth) > 1e-5
            assert shows != (one.layers == (UNREAD.get(name),)), one


TABLES = {"pixart-sigma", "pixart-sizes", "wan", "wan-ti2v", "ltx", "ltx-i2v", "sana"}
"""Families whose blocks add a table of their own to scales and shifts that one linear makes for all."""


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_of_blocks_take_up_factors_that_these_have_in_common(name: str) -> None:
    module, call = tiny_denoiser(name, rows=2)
    readings, truth = read_strands(module, call), run(module, call)
    before = copy.deepcopy(module.state_dict())
    folds = [one for one in find_folds(module, readings, [call]).found if any(own.bare for own in one.rows)]
    assert [(one.kind, len(one.owners)) for one in folds] == [
        ("scale", 3)
    ] * 2  # of two blocks, before attention and mlp
    for one in folds:
        assert {own.offset for own in one.rows if not own.bare} == {0.0}
        change = fold._random_change(module, one, seed=3)
        with restored(module, [one]):
            fold_(module, one, change)
            changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
            assert {own.owner for own in one.rows if own.bare} < changed
            assert relative_error(run(module, call), truth) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
