"""shapes-video: Wan's transformer under UMT5, as WanPipeline takes them. Knows no training loop."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.train import schedule, text
from zoo.train.denoiser import Plan
from zoo.train.films import LATENT_CHANNELS
from zoo.train.moving import CARD, WORDS, Moving
from zoo.train.muon import MuonAndAdam
from zoo.train.t5 import UMT5

LAYERS, HEADS, HEAD_WIDTH = 8, 4, 64
DIFFUSERS_LENGTH = 512
"""Tokens that WanPipeline pads a prompt to unless told otherwise."""


def padded(states: Tensor, known: Tensor) -> Tensor:
    """Text states [batch, L, W] with zeros for padding, as WanPipeline gives them, at one of three lengths by chance.

    No mask tells the denoiser what is padding, and its amount is the caller's choice: halftone asks for text.LENGTH,
    plain diffusers for 512. What is learned at several lengths does not depend on it.
    """
    chance = float(torch.rand(()))
    length = text.LENGTH if chance < 0.6 else int(known.sum(1).max()) if chance < 0.92 else DIFFUSERS_LENGTH
    told = (states * known[..., None])[:, :length]
    return functional.pad(told, (0, 0, 0, length - told.shape[1]))


class ShapesVideo:
    """The recipe of shapes-video (`denoiser.Kind`)."""

    name = "shapes-video"
    checkpoint = "video.pt"
    plan = Plan(steps=3500, batch=64, rate=2e-3)
    examples = 20_000
    card = CARD
    world = Moving()
    noise = schedule.Flow()

    def __init__(self) -> None:
        self.language = UMT5(WORDS)

    def build(self) -> WanTransformer3DModel:
        """The untrained denoiser, 8 million parameters: 8 blocks of width 256, a token for 2x2 of 5x8x8 latents."""
        model = WanTransformer3DModel(
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
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                # under autocast its input is bfloat16 and its weight is not, for which torch has no fast way
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        return model

    def optimizer(self, model: nn.Module, rate: float) -> MuonAndAdam:
        """Muon, as for the autoencoder."""
        return MuonAndAdam(model, rate, ("patch_embedding", "proj_out"))

    def guess(self, model: nn.Module, noisy: Tensor, times: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """The denoiser's output, by bfloat16 matrix products."""
        # torch's fused attention takes twice as long backwards as products of matrices do at so few tokens
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            guess = model(noisy, timestep=times, encoder_hidden_states=padded(states, known)).sample
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
