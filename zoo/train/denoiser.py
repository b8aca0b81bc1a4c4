"""Stage 3: the denoiser (UNet2DConditionModel) learns to paint captions, in latents. Knows no pixels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from zoo.train import assemble, checkpoint, text, tokenizer
from zoo.train.autoencoder import LATENT_CHANNELS
from zoo.train.latents import Latents


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 3 does: optimizer steps, batch, peak learning rate, prompt dropout, averaging, SNR weighting."""

    steps: int = 6500
    batch: int = 48
    rate: float = 8e-4
    drop: float = 0.1
    average: float = 0.999
    gamma: float = 5.0


def build() -> UNet2DConditionModel:
    """The untrained denoiser, 8 million parameters: three levels, cross-attention in the upper two."""
    return UNet2DConditionModel(
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


@dataclass(slots=True)
class Stage:
    """The moving parts of stage 3: the denoiser, its running average, its optimizer, and the step reached."""

    model: UNet2DConditionModel
    average: UNet2DConditionModel
    optimizer: torch.optim.AdamW
    step: int

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }


def start(path: Path, plan: Plan) -> Stage:
    """A fresh stage, or the one that the checkpoint holds."""
    torch.manual_seed(0)
    model, average = build(), build()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state = checkpoint.load(path)
    if state is None:
        return Stage(model, average, optimizer, 0)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return Stage(model, average, optimizer, state["step"])


class Noise:
    """Noised latents and their targets under the pipeline's own schedule (v-prediction, min-SNR weighting)."""

    def __init__(self, gamma: float) -> None:
        self.kept = assemble.scheduler().alphas_cumprod
        snr = self.kept / (1 - self.kept)
        self.weight = snr.clamp(max=gamma) / (snr + 1) + 1e-3

    def draw(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy latents, timesteps, targets and loss weights for clean latents [batch, channels, 8, 8]."""
        times = torch.randint(0, len(self.kept), (len(latents),))
        kept = self.kept[times][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        target = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        return noisy, times, target, self.weight[times]


def captions(data: Latents, rows: torch.Tensor, drop: float, empty: torch.Tensor) -> torch.Tensor:
    """Tokens of one random wording per row; a share `drop` of them empty, for guidance."""
    wording = torch.randint(0, data.ids.shape[1], rows.shape)
    ids = data.ids[rows, wording].long()
    return torch.where((torch.rand(len(rows)) < drop)[:, None], empty, ids)


def step(stage: Stage, plan: Plan, data: Latents, encoder: CLIPTextModel, noise: Noise, empty: torch.Tensor) -> float:
    """One optimizer step; returns the weighted loss."""
    rows = torch.randint(0, len(data.latents), (plan.batch,))
    latents = data.latents[rows].float()
    with torch.no_grad():
        states = encoder(captions(data, rows, plan.drop, empty)).last_hidden_state
    noisy, times, target, weight = noise.draw(latents)
    guess = stage.model(noisy.contiguous(memory_format=torch.channels_last), times, states).sample
    loss = ((guess - target).pow(2).mean((1, 2, 3)) * weight).mean()
    stage.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
    for group in stage.optimizer.param_groups:
        group["lr"] = checkpoint.learning_rate(stage.step, plan.steps, plan.rate, warm=300)
    stage.optimizer.step()
    decay = min(plan.average, (1 + stage.step) / (10 + stage.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(stage.average.parameters()), list(stage.model.parameters()), 1 - decay)
    stage.step += 1
    return float(loss.detach())


def train(path: Path, data: Latents, encoder: CLIPTextModel, plan: Plan = Plan(), *, every: int = 250) -> Stage:
    """Run or resume stage 3; the checkpoint at `path` is renewed every `every` steps."""
    stage = start(path, plan)
    stage.model.to(memory_format=torch.channels_last)
    torch.manual_seed(stage.step)
    noise, empty = Noise(plan.gamma), text.encode_tokens(tokenizer.build(), [""])
    began, first, total = time.monotonic(), stage.step, 0.0
    while stage.step < plan.steps:
        total += step(stage, plan, data, encoder, noise, empty)
        if stage.step % every == 0 or stage.step == plan.steps:
            pace = (time.monotonic() - began) / (stage.step - first)
            print(f"denoiser {stage.step}/{plan.steps}: loss {total / every:.5f}, {pace:.3f} s/step", flush=True)
            total = 0.0
            checkpoint.save(path, stage.state())
    return stage
