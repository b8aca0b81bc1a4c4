"""The autoencoder of films (AutoencoderKLWan, 17 frames of 64x64 pixels to 5x8x8 latents) and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.shapes.film import Window, paint
from zoo.shapes.motion import FRAMES, pose, random_moving_scene
from zoo.shapes.world import SIDE
from zoo.train.autoencoder import Plan
from zoo.train.muon import MuonAndAdam

LATENT_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Phase:
    """What films are learned from until a share of the steps is done: so many frames of so many pixels' side, and how
    many of them for each item of a batch."""

    until: float
    frames: int
    side: int
    items: float


PHASES = (Phase(0.2, 1, 32, 4), Phase(0.6, 9, 32, 1), Phase(1.0, FRAMES, SIDE, 1 / 4))
"""Colours and edges are learned from parts of single frames, at a fraction of the price of moving ones; motion from
parts of films; whole films teach only what borders and long ways change."""


def tensor(films: list[NDArray[np.uint8]]) -> Tensor:
    """Films [frames, height, width, 3] as a batch [count, 3, frames, height, width] float32 in -1..1."""
    batch = torch.from_numpy(np.stack(films)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last_3d)


def channels_last(model: nn.Module) -> None:
    """Lay the weights of convolutions out as the CPU likes them: a step takes a fifth less time."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def part(rng: np.random.Generator, frames: int, side: int) -> NDArray[np.uint8]:
    """A part of a random film near its thing, [frames, side, side, 3] uint8."""
    scene = random_moving_scene(rng, unseen=False)
    way = pose(scene.motion, rng).part(int(rng.integers(FRAMES - frames + 1)), frames)
    middle = int(rng.integers(frames))
    reach = min(14, SIDE - side)
    corners = [track[middle] + rng.uniform(-reach, reach) - side / 2 for track in (way.x, way.y)]
    left, top = (int(np.clip(round(corner), 0, SIDE - side)) for corner in corners)
    return paint(scene, way, Window(left, top, side))


class Films:
    """The recipe of shapes-video's autoencoder (`autoencoder.Kind`)."""

    checkpoint = "vae-films.pt"
    per_channel = True
    plan = Plan(steps=3600, batch=16, rate=4e-3)

    def build(self) -> AutoencoderKLWan:
        """The untrained autoencoder, 2 million parameters: 2x2 pixels are one, then two levels halve space and time.

        It has shortcuts past every level, as Wan 2.2 does: the plain form was slower to begin in short trials.
        """
        model = AutoencoderKLWan(
            base_dim=16,
            decoder_base_dim=32,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            is_residual=True,
            temperal_downsample=[True, True],
            patch_size=2,
            in_channels=12,
            out_channels=12,
            latents_mean=[0.0] * LATENT_CHANNELS,
            latents_std=[1.0] * LATENT_CHANNELS,
            scale_factor_temporal=4,
            scale_factor_spatial=8,
        )
        # noise of variance 1 on untrained latents drowns the picture; begin almost without
        with torch.no_grad():
            model.quant_conv.bias[LATENT_CHANNELS:] = -6.0
        channels_last(model)
        return model

    def optimizer(self, model: AutoencoderKLWan, rate: float) -> MuonAndAdam:
        """Muon, which was well ahead of AdamW after 300 steps in single runs (at rates of their own)."""
        return MuonAndAdam(model, rate, ("encoder.conv_in", "decoder.conv_out"), weight_decay=1e-4)

    def batch(self, rng: np.random.Generator, count: int, share: float) -> Tensor:
        """Random parts of training films as the phase has them, [items, 3, frames, side, side] float32 in -1..1."""
        phase = next(phase for phase in PHASES if share < phase.until)
        return tensor([part(rng, phase.frames, phase.side) for _ in range(max(1, int(count * phase.items)))])

    def scale(self, model: AutoencoderKLWan, mean: Tensor, deviation: Tensor) -> None:
        """Mean and deviation of each channel."""
        model.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
