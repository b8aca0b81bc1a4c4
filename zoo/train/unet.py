"""shapes-unet: a UNet2DConditionModel under CLIP, as StableDiffusionPipeline takes them. Knows no training loop."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from zoo.train import schedule, text
from zoo.train.clip import Clip
from zoo.train.denoiser import Plan, adam
from zoo.train.pictures import LATENT_CHANNELS
from zoo.train.still import CARD, Still


class ShapesUNet:
    """The recipe of shapes-unet (`denoiser.Kind`)."""

    name = "shapes-unet"
    checkpoint = "unet.pt"
    plan = Plan(steps=6500)
    examples = 40_000
    card = CARD
    world = Still()
    noise = schedule.Diffusion()

    def __init__(self) -> None:
        self.language = Clip()

    def build(self) -> UNet2DConditionModel:
        """The untrained denoiser, 8 million parameters: three levels, cross-attention in the upper two."""
        model = UNet2DConditionModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=1,
            block_out_channels=(64, 128, 176),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=text.WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        return model.to(memory_format=torch.channels_last)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.AdamW:
        """Plain AdamW."""
        return adam(model, rate)

    def guess(self, model: nn.Module, noisy: Tensor, times: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """The denoiser's output. Padding is the caption's end once more, and not masked."""
        guess: Tensor = model(noisy.contiguous(memory_format=torch.channels_last), times, states).sample
        return guess

    def pipeline(self, autoencoder: AutoencoderKL, encoder: nn.Module, model: nn.Module) -> StableDiffusionPipeline:
        """The trained parts as a pipeline."""
        return StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=encoder,
            tokenizer=self.language.words,
            unet=model,
            scheduler=schedule.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
