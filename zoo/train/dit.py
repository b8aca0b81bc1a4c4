"""shapes-dit: a PixArt transformer under T5, as PixArtSigmaPipeline takes them. Knows no training loop."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from zoo.train import schedule, text
from zoo.train.denoiser import Plan, adam
from zoo.train.pictures import LATENT_CHANNELS
from zoo.train.still import CARD, WORDS, Still
from zoo.train.t5 import T5

LAYERS, HEADS, HEAD_WIDTH = 8, 4, 64


class ShapesDiT:
    """The recipe of shapes-dit (`denoiser.Kind`)."""

    name = "shapes-dit"
    checkpoint = "dit.pt"
    plan = Plan(steps=10_000)
    examples = 40_000
    card = CARD
    world = Still()
    noise = schedule.Diffusion()

    def __init__(self) -> None:
        self.language = T5(WORDS)

    def build(self) -> PixArtTransformer2DModel:
        """The untrained denoiser, 9 million parameters: 8 blocks of width 256, a token for each of 8x8 latents."""
        return PixArtTransformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=LAYERS,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            cross_attention_dim=HEADS * HEAD_WIDTH,
            caption_channels=text.WIDTH,
            use_additional_conditions=False,
            interpolation_scale=1,
        )

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.AdamW:
        """Plain AdamW."""
        return adam(model, rate)

    def guess(self, model: nn.Module, noisy: Tensor, times: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """The denoiser's output, by bfloat16 matrix products."""
        sizes = {"resolution": None, "aspect_ratio": None}
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(
                noisy,
                timestep=times,
                encoder_hidden_states=states,
                encoder_attention_mask=known.to(noisy.dtype),
                added_cond_kwargs=sizes,
            ).sample
        return guess.float()  # type: ignore[no-any-return]

    def pipeline(self, autoencoder: AutoencoderKL, encoder: nn.Module, model: nn.Module) -> PixArtSigmaPipeline:
        """The trained parts as a pipeline."""
        return PixArtSigmaPipeline(
            vae=autoencoder,
            text_encoder=encoder,
            tokenizer=self.language.words,
            transformer=model,
            scheduler=schedule.scheduler(),
        )
