"""Splits: layers on concatenated skips are found by data flow, in UNets and transformers, and nothing else is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import quant
from quant.splits import find_splits
from tests.quant.blocknet import call_at, make_block_net, make_unet


def call_of(**rows: Tensor) -> quant.Call:
    return quant.Call(rows, quant.StepClock.unknown(2))


def test_skips_of_a_unet() -> None:
    unet = make_unet()
    call = call_of(
        sample=torch.randn(2, 4, 8, 8), timestep=torch.tensor([5, 5]), encoder_hidden_states=torch.randn(2, 3, 8)
    )
    sizes = {
        "up_blocks.0.resnets.0": (16, 16),
        "up_blocks.0.resnets.1": (16, 8),
        "up_blocks.1.resnets.0": (16, 8),
        "up_blocks.1.resnets.1": (8, 8),
    }
    expected = {f"{block}.{layer}": size for block, size in sizes.items() for layer in ("conv1", "conv_shortcut")}
    assert find_splits(unet, call) == expected
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in unet.modules())


def test_a_skip_that_is_no_modules_output_is_none() -> None:
    assert find_splits(make_block_net(), call_at(0)) == {}  # there the skip is scaled first


class Tokens(nn.Module):
    """Concatenations along tokens, along channels, of functions' outputs, and of modules' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.longer, self.norm, self.skip = nn.Linear(4, 4), nn.LayerNorm(10), nn.Linear(10, 4)
        self.residual, self.both, self.mixed = nn.Linear(10, 10), nn.Linear(10, 4), nn.Linear(10, 4)

    def forward(self, sample: Tensor) -> Tensor:
        angles = torch.cat([torch.sin(sample[..., :2]), torch.cos(sample[..., :2])], dim=-1)
        left, right = self.left(self.embed(angles)), self.right(sample)
        tokens = self.longer(torch.cat([left, self.left(sample)], dim=1))[:, : sample.shape[1]]
        joined = torch.cat([left, right], dim=-1)
        narrow = self.skip(functional.gelu(self.norm(joined)) * 2.0)
        wide = joined + self.residual(joined)  # parts are no longer apart
        out: Tensor = tokens + narrow + self.both(joined) + self.both(wide) + self.mixed(wide)
        return out


def test_only_channels_of_modules_outputs_that_stay_apart_count() -> None:
    found = find_splits(Tokens(), call_of(sample=torch.randn(2, 3, 4)))
    assert found == {"skip": (4, 6), "residual": (4, 6)}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.same, self.after, self.resized = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, sample: Tensor) -> Tensor:
        joined = torch.concat((self.a(sample), self.b(sample)), 1)
        larger = functional.interpolate(functional.silu(joined), scale_factor=2.0)
        out: Tensor = self.after(self.same(joined)) + functional.avg_pool2d(self.resized(larger), 2)
        return out


def test_a_convolution_ends_the_concatenation() -> None:
    found = find_splits(Convolutions(), call_of(sample=torch.randn(2, 3, 4, 4)))
    assert found == {"same": (4, 2), "resized": (4, 2)}
