"""A small denoiser of two residual blocks and an attention block around a skip connection, calls of it, and a UNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

import quant
from quant.calibrate import calibrate
from quant.grid import to_integers, weight_scales
from quant.layers import InputGrid, Quantized, empty_like, parts_of, quantizable_layers
from quant.nearest import grid_of
from quant.recipe import Activations
from quant.samples import Samples, SampleWish

STEPS, ROWS, CHANNELS = 5, 6, 8


class Residual(nn.Module):
    """[B, in, H, W] and a time feature [B, 16] to [B, 8, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.time = nn.Linear(16, CHANNELS)
        self.shortcut = nn.Conv2d(channels, CHANNELS, 1) if channels != CHANNELS else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm(x))) + self.time(time)[:, :, None, None]
        out: Tensor = self.conv2(functional.silu(h)) + (x if self.shortcut is None else self.shortcut(x))
        return out


class Attention(nn.Module):
    """[B, tokens, 8] to the same; takes arguments of every kind and gives two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.out = nn.ModuleList([nn.Linear(CHANNELS, CHANNELS), nn.Dropout(0.5)])

    def forward(self, x: Tensor, places: Tensor, *, options: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x + places).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + options["strength"] * self.out[1](self.out[0](mixed)) * options["gates"][:, None, None], places


class BlockNet(nn.Module):
    """[B, 4, 6, 6] and times [B] to [B, 4, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.embed = nn.Linear(4, 16)
        self.blocks = nn.ModuleList([Residual(CHANNELS), Residual(2 * CHANNELS)])
        self.attentions = nn.ModuleList([Attention()])
        self.middle = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.register_buffer("places", torch.linspace(-1, 1, 36 * CHANNELS).view(1, 36, CHANNELS))
        self.places: Tensor

    def forward(self, sample: Tensor, time: Tensor) -> tuple[Tensor]:
        angles = time.float()[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
        feature = functional.silu(self.embed(torch.sin(angles)))
        skip = self.first(sample)
        h = self.blocks[0](skip, feature)
        tokens = h.flatten(2).transpose(1, 2)
        tokens, _ = self.attentions[0](
            tokens, self.places, options={"strength": torch.tensor(0.5), "gates": feature.mean(1)}
        )
        h = self.middle(tokens.transpose(1, 2).unflatten(2, (6, 6)))
        return (self.last(self.blocks[1](torch.cat([h, 3 * skip], dim=1), feature)),)


def make_block_net() -> BlockNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BlockNet().eval()


def make_unet() -> nn.Module:
    """A UNet of diffusers with attention in its outer blocks and skip connections of several widths."""
    unet: nn.Module = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return unet.eval()


def call_at(step: int, seed: int = 0, rows: int = ROWS) -> quant.Call:
    """Rows of both branches at one step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    clock = quant.StepClock(
        torch.full((rows,), step),
        torch.full((rows,), STEPS),
        torch.tensor([0] * (rows // 2) + [1] * (rows - rows // 2)),
    )
    # smooth and of two colours: in correlated inputs roundings can make up for each other, as in real features
    noise = functional.interpolate(torch.randn(rows, 2, 2, 2, generator=generator), size=(6, 6), mode="bilinear")
    sample = torch.cat([noise, noise.flip(1) * 0.5 + 0.1], dim=1) * (1 + step)
    return quant.Call({"sample": sample, "time": torch.full((rows,), 900 - 200 * step)}, clock, roles={"time": "time"})


def run_net(answer: Callable[[quant.Call], Tensor]) -> None:
    for seed in range(3):
        for step in range(STEPS):
            answer(call_at(step, seed))


def samples_of(net: nn.Module, count: int = 60) -> Samples:
    samples = calibrate(net, run_net, samples=SampleWish(count)).samples
    assert samples is not None
    return samples


def nearest(
    net: nn.Module, *, bits: int = 4, inputs: bool = False, splits: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Quantized]:
    """All layers but the first and the last, rounded to nearest."""
    statistics = calibrate(net, run_net, splits=splits)
    made: dict[str, Quantized] = {}
    for name, layer in quantizable_layers(net).items():
        if name in ("first", "last"):
            continue
        sizes = (splits or {}).get(name, ())
        quantized = empty_like(layer, InputGrid(8 if inputs else None), "cpu", sizes=sizes)
        parts, seen = parts_of(quantized), statistics.layers[name]
        weights = torch.split(layer.weight.detach(), list(sizes) or [layer.weight.shape[1]], dim=1)
        for part, weight, own in zip(parts, weights, seen.parts or [seen], strict=True):
            scales = weight_scales(weight, bits, "mse")
            part.set_weight(to_integers(weight, scales, bits), scales, layer.bias if part is parts[0] else None)
            if inputs:
                part.set_grid(grid_of(own.inputs, Activations()))
        made[name] = quantized.eval()
    return made
