"""The autoencoder of still pictures (AutoencoderKL, 64x64 pixels to 8x8 latents) and what it is shown."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from zoo.shapes.draw import draw
from zoo.shapes.world import random_scene
from zoo.train.autoencoder import Plan

LATENT_CHANNELS = 12


def tensor(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures [64, 64, 3] as a batch [count, 3, 64, 64] float32 in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pictures:
    """The recipe of the picture models' autoencoder (`autoencoder.Kind`)."""

    checkpoint = "vae.pt"
    plan = Plan()
    per_channel = False

    def build(self) -> AutoencoderKL:
        """The untrained autoencoder: 1/8 of the width, 12 latent channels."""
        model = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 64, 96),
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            sample_size=64,
            mid_block_add_attention=False,
        )
        # noise of variance 1 on untrained latents drowns the picture; begin almost without
        with torch.no_grad():
            model.quant_conv.bias[LATENT_CHANNELS:] = -6.0
        return model

    def optimizer(self, model: AutoencoderKL, rate: float) -> torch.optim.AdamW:
        """Plain AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def batch(self, rng: np.random.Generator, count: int, share: float) -> Tensor:
        """Random training pictures, [count, 3, 64, 64] float32 in -1..1."""
        scenes = [random_scene(rng, 1 + int(rng.random() < 0.65), unseen=False) for _ in range(count)]
        return tensor([draw(scene, rng) for scene in scenes])

    def scale(self, model: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
        """One factor for all channels; their means are left where they are."""
        model.register_to_config(scaling_factor=1 / float(deviation[0]))
