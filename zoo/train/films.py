"""The autoencoder of films (AutoencoderKLWan, 17 frames of 64x64 pixels to 5x8x8 latents) and what it is shown."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor, nn

from zoo.shapes.film import Window, paint
from zoo.shapes.motion import FRAMES, pose, random_moving_scene
from zoo.shapes.world import SIDE
from zoo.train.autoencoder import Plan

LATENT_CHANNELS = 16
CROPPED = 0.75
"""Share of the steps that see parts of films only: a sixth of the price, and their edges all the same."""
CROP_SIDE, CROP_FRAMES = 32, 9


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


def part(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A part of a random film near its thing, [CROP_FRAMES, CROP_SIDE, CROP_SIDE, 3] uint8."""
    scene = random_moving_scene(rng, unseen=False)
    way = pose(scene.motion, rng).part(int(rng.integers(FRAMES - CROP_FRAMES + 1)), CROP_FRAMES)
    middle = int(rng.integers(CROP_FRAMES))
    centre = [track[middle] + rng.uniform(-14, 14) - CROP_SIDE / 2 for track in (way.x, way.y)]
    left, top = (int(np.clip(round(corner), 0, SIDE - CROP_SIDE)) for corner in centre)
    return paint(scene, way, Window(left, top, CROP_SIDE))


class Films:
    """The recipe of shapes-video's autoencoder (`autoencoder.Kind`)."""

    checkpoint = "vae-films.pt"
    per_channel = True
    plan = Plan(steps=5200, batch=16, rate=2e-3)

    def build(self) -> AutoencoderKLWan:
        """The untrained autoencoder, 5 million parameters: 2x2 pixels are one, then two levels that halve space and
        time."""
        model = AutoencoderKLWan(
            base_dim=16,
            decoder_base_dim=32,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 4],
            num_res_blocks=1,
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

    def batch(self, rng: np.random.Generator, count: int, share: float) -> Tensor:
        """Random parts of training films, [count, 3, 9, 32, 32] float32 in -1..1; towards the end a quarter as many
        whole films, [count / 4, 3, 17, 64, 64]."""
        if share < CROPPED:
            return tensor([part(rng) for _ in range(count)])
        scenes = [random_moving_scene(rng, unseen=False) for _ in range(max(1, count // 4))]
        return tensor([paint(scene, pose(scene.motion, rng)) for scene in scenes])

    def scale(self, model: AutoencoderKLWan, mean: Tensor, deviation: Tensor) -> None:
        """Mean and deviation of each channel."""
        model.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
