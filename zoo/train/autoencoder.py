"""Stage 1: the autoencoder (AutoencoderKL, 64x64 pixels to 8x8 latents). Knows pictures, not captions."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from zoo.shapes.draw import draw
from zoo.shapes.world import random_scene
from zoo.train import checkpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 1 does: optimizer steps, batch, peak learning rate, weight of the latents' prior."""

    steps: int = 4800
    batch: int = 16
    rate: float = 2e-3
    prior: float = 1e-7


def build() -> AutoencoderKL:
    """The untrained autoencoder: 1/8 of the width, 16 latent channels."""
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


LATENT_CHANNELS = 12


def pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Random training pictures, [count, 3, 64, 64] float32 in -1..1."""
    scenes = [random_scene(rng, 1 + int(rng.random() < 0.65), unseen=False) for _ in range(count)]
    stack = np.stack([draw(scene, rng) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_of(model: AutoencoderKL, batch: torch.Tensor, prior: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Training loss and the plain mean squared error of a batch."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(batch).latent_dist
        restored = model.decode(posterior.sample()).sample.float()
    error = functional.mse_loss(restored, batch)
    absolute = functional.l1_loss(restored, batch)
    return error + 0.2 * absolute + prior * posterior.kl().mean(), error


def psnr(error: float) -> float:
    """Decibels for a mean squared error of values in -1..1."""
    return 10 * float(np.log10(4 / error))


def train(path: Path, plan: Plan = Plan(), *, every: int = 100) -> AutoencoderKL:
    """Run or resume stage 1; the checkpoint at `path` is renewed every `every` steps."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    state = checkpoint.load(path)
    start = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng = np.random.default_rng(start)
    began, error = time.monotonic(), torch.zeros(())
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = checkpoint.learning_rate(step, plan.steps, plan.rate)
        batch = pictures(rng, plan.batch)
        loss, error = loss_of(model, batch, plan.prior)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            pace = (time.monotonic() - began) / (step + 1 - start)
            print(f"autoencoder {step + 1}/{plan.steps}: {psnr(error.item()):.2f} dB, {pace:.3f} s/step", flush=True)
            checkpoint.save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]), Plan(steps=int(os.environ.get("STEPS", Plan().steps))))
