"""Units: innermost blocks by structure, all other layers alone, in the order in which they run."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

import quant
from quant.blocks import find_units
from quant.layers import quantizable_layers
from tests.quant.blocknet import call_at, make_block_net, make_unet


def names(module: nn.Module, call: quant.Call, grain: str = "block", skip: tuple[str, ...] = ()) -> dict[str, int]:
    layers = [name for name in quantizable_layers(module) if name not in skip]
    units = find_units(module, layers, call, "layer" if grain == "layer" else "block")
    inside = [name for unit in units for name in unit.layers]
    assert len(inside) == len(set(inside))
    assert all(name == unit.name or name.startswith(f"{unit.name}.") for unit in units for name in unit.layers)
    return {unit.name: len(unit.layers) for unit in units}


def test_blocks_and_single_layers_in_order() -> None:
    found = names(make_block_net(), call_at(0), skip=("first",))
    assert list(found.items()) == [
        ("embed", 1), ("blocks.0", 3), ("attentions.0", 2), ("middle", 1), ("blocks.1", 4), ("last", 1),
    ]  # fmt: skip


def test_blocks_shrink_with_the_layers_that_count() -> None:
    net = make_block_net()
    units = find_units(net, ["blocks.1.conv2", "blocks.1.conv1", "blocks.0.conv1"], call_at(0))
    assert [(unit.name, unit.layers) for unit in units] == [
        ("blocks.0.conv1", ("blocks.0.conv1",)),
        ("blocks.1", ("blocks.1.conv2", "blocks.1.conv1")),
    ]


def test_by_layer_every_layer_is_alone() -> None:
    net = make_block_net()
    found = names(net, call_at(0), "layer")
    assert found == dict.fromkeys(quantizable_layers(net), 1)
    order = list(found)
    assert order.index("blocks.0.conv2") < order.index("attentions.0.qkv") < order.index("blocks.1.conv1")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x))
        return out


class Siblings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.first, self.unused, self.alone = Pair(), Pair(), Pair(), nn.Linear(4, 4)

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.second(self.alone(self.first(sample)))
        return out


def test_siblings_of_one_class_are_blocks_and_what_never_runs_is_none() -> None:
    call = quant.Call({"sample": torch.ones(2, 4)}, quant.StepClock.unknown(2))
    assert names(Siblings(), call) == {"first": 2, "alone": 1, "second": 2}


def test_a_unet_of_diffusers() -> None:
    unet = make_unet()
    call = quant.Call(
        {
            "sample": torch.randn(1, 4, 8, 8),
            "timestep": torch.tensor([5]),
            "encoder_hidden_states": torch.randn(1, 3, 8),
        },
        quant.StepClock.unknown(1),
    )
    found = names(unet, call)
    assert found["down_blocks.0.resnets.0"] == 3
    assert found["up_blocks.1.resnets.1"] == 4
    assert found["mid_block.attentions.0.transformer_blocks.0"] == 10
    assert found["down_blocks.0.attentions.0.proj_in"] == found["down_blocks.0.downsamplers.0.conv"] == 1
    assert sum(found.values()) == len(quantizable_layers(unet))
    order = list(found)
    assert order[:3] == ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
    assert order[-1] == "conv_out"


def test_a_transformer_of_diffusers() -> None:
    transformer = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    rows = {
        "hidden_states": torch.randn(1, 4, 8),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "pooled_projections": torch.randn(1, 8),
        "timestep": torch.tensor([0.5]),
    }
    shared = {"img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)}
    found = names(transformer, quant.Call(rows, quant.StepClock.unknown(1), shared))
    blocks = [name for name in found if "blocks" in name]
    assert blocks == ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]
    assert sum(found.values()) == len(quantizable_layers(transformer))
