"""Stage 1: an autoencoder learns to restore what it is shown. Knows no captions, and of its data only the shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zoo.train import checkpoint
from zoo.train.checkpoint import Optimizer


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 1 does: optimizer steps, batch, peak learning rate, weight of the latents' prior."""

    steps: int = 4800
    batch: int = 16
    rate: float = 2e-3
    prior: float = 1e-7


class Kind(Protocol):
    """An autoencoder of the zoo: what its recipe does not share with the others'."""

    checkpoint: str
    plan: Plan
    per_channel: bool
    """Whether its latents are brought to unit variance channel by channel, or by one factor."""

    def build(self) -> Any:
        """The untrained autoencoder: a diffusers model with `encode` and `decode`."""

    def optimizer(self, model: Any, rate: float) -> Optimizer:
        """What teaches it."""

    def batch(self, rng: np.random.Generator, count: int, share: float) -> Tensor:
        """Training data in -1..1, channels first, when this share of the steps is done."""

    def scale(self, model: Any, mean: Tensor, deviation: Tensor) -> None:
        """Write into the model's config what its latents are normalized by, [channels] each."""


def loss_of(model: Any, batch: Tensor, prior: float) -> tuple[Tensor, Tensor]:
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


def train(path: Path, kind: Kind, plan: Plan | None = None, *, every: int = 100) -> Any:
    """Run or resume stage 1; the checkpoint at `path` is renewed every `every` steps."""
    plan = plan or kind.plan
    torch.manual_seed(0)
    model = kind.build()
    optimizer = kind.optimizer(model, plan.rate)
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
        batch = kind.batch(rng, plan.batch, step / plan.steps)
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
