"""shapes-video: Wan's transformer under UMT5, as WanPipeline takes them. Knows no training loop."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from zoo.train import schedule, text
from zoo.train.denoiser import Plan
from zoo.train.films import LATENT_CHANNELS
from zoo.train.moving import CARD, WORDS, Moving
from zoo.train.t5 import UMT5

LAYERS, HEADS, HEAD_WIDTH = 8, 4, 64


class ShapesVideo:
    """The recipe of shapes-video (`denoiser.Kind`)."""

    name = "shapes-video"
    checkpoint = "video.pt"
    plan = Plan(steps=10_000, batch=48, rate=8e-4)
    examples = 20_000
    card = CARD
    world = Moving()
    noise = schedule.Flow()

    def __init__(self) -> None:
        self.language = UMT5(WORDS)

    def build(self) -> WanTransformer3DModel:
        """The untrained denoiser, 8 million parameters: 8 blocks of width 256, a token for 2x2 of 5x8x8 latents."""
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            text_dim=text.WIDTH,
            freq_dim=256,
            ffn_dim=3 * HEADS * HEAD_WIDTH,
            num_layers=LAYERS,
            rope_max_seq_len=128,
        )

    def guess(self, model: nn.Module, noisy: Tensor, times: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """The denoiser's output, by bfloat16 matrix products; the pipeline gives it zeros for padding, and no mask."""
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(noisy, timestep=times, encoder_hidden_states=states * known[..., None]).sample
        return guess.float()  # type: ignore[no-any-return]

    def pipeline(self, autoencoder: AutoencoderKLWan, encoder: nn.Module, model: nn.Module) -> WanPipeline:
        """The trained parts as a pipeline."""
        return WanPipeline(
            tokenizer=self.language.words,
            text_encoder=encoder,
            vae=autoencoder,
            scheduler=schedule.flow_scheduler(),
            transformer=model,
        )
