"""Stage 3: the denoiser learns to paint captions, in latents. Knows no pixels, and no architecture."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from zoo.train import checkpoint, text
from zoo.train.checkpoint import Optimizer
from zoo.train.latents import Latents
from zoo.train.world import World


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 3 does: optimizer steps, batch, peak learning rate, prompt dropout, averaging."""

    steps: int = 6500
    batch: int = 48
    rate: float = 8e-4
    drop: float = 0.1
    average: float = 0.999


class Noise(Protocol):
    """How latents are noised, and what is to be guessed from them."""

    def draw(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps [batch], targets and loss weights [batch] for clean latents [batch, ...]."""


def adam(model: nn.Module, rate: float) -> torch.optim.AdamW:
    """What teaches most denoisers."""
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


class Kind(Protocol):
    """A model of the zoo: what its recipe does not share with the others'."""

    name: str
    checkpoint: str
    plan: Plan
    examples: int
    card: dict[str, Any]
    """What its halftone.json says besides the id."""

    @property
    def world(self) -> World:
        """What it shows."""

    @property
    def language(self) -> text.Language:
        """What its captions are read by."""

    @property
    def noise(self) -> Noise:
        """Under its pipeline's schedule."""

    def build(self) -> ModelMixin:
        """The untrained denoiser."""

    def optimizer(self, model: nn.Module, rate: float) -> Optimizer:
        """What teaches it."""

    def guess(self, model: nn.Module, noisy: Tensor, times: Tensor, states: Tensor, known: Tensor) -> Tensor:
        """Its output [B, C, ...] for noisy latents, timesteps [B], text states [B, L, W], and which of them count."""

    def pipeline(self, autoencoder: Any, encoder: nn.Module, model: nn.Module) -> Any:
        """The trained parts as a diffusers pipeline."""


@dataclass(slots=True)
class Stage:
    """The moving parts of stage 3: the denoiser, its running average, its optimizer, and the step reached."""

    model: ModelMixin
    average: ModelMixin
    optimizer: Optimizer
    step: int

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }


def start(path: Path, kind: Kind, plan: Plan) -> Stage:
    """A fresh stage, or the one that the checkpoint holds."""
    torch.manual_seed(0)
    model, average = kind.build(), kind.build()
    average.load_state_dict(model.state_dict())
    optimizer = kind.optimizer(model, plan.rate)
    state = checkpoint.load(path)
    if state is None:
        return Stage(model, average, optimizer, 0)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return Stage(model, average, optimizer, state["step"])


def captions(data: Latents, rows: Tensor, drop: float, empty: Tensor) -> Tensor:
    """Tokens of one random wording per row; a share `drop` of them empty, for guidance."""
    wording = torch.randint(0, data.ids.shape[1], rows.shape)
    ids = data.ids[rows, wording].long()
    return torch.where((torch.rand(len(rows)) < drop)[:, None], empty, ids)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What every step of stage 3 draws on."""

    kind: Kind
    plan: Plan
    data: Latents
    encoder: nn.Module
    empty: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        """The weighted loss of a random batch."""
        rows = torch.randint(0, len(self.data.latents), (self.plan.batch,))
        ids = captions(self.data, rows, self.plan.drop, self.empty)
        language = self.kind.language
        with torch.no_grad():
            states = language.states(self.encoder, ids)
        noisy, times, target, weight = self.kind.noise.draw(self.data.latents[rows].float())
        guess = self.kind.guess(model, noisy, times, states, language.knowing(ids))
        return ((guess - target).pow(2).flatten(1).mean(1) * weight).mean()


def step(stage: Stage, lesson: Lesson) -> float:
    """One optimizer step; returns the loss."""
    plan = lesson.plan
    loss = lesson.loss(stage.model)
    stage.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
    for group in stage.optimizer.param_groups:
        group["lr"] = checkpoint.learning_rate(stage.step, plan.steps, plan.rate, warm=300)
    stage.optimizer.step()
    decay = min(plan.average, (1 + stage.step) / (10 + stage.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(stage.average.parameters()), list(stage.model.parameters()), 1 - decay)
    stage.step += 1
    return float(loss.detach())


def train(
    path: Path, kind: Kind, data: Latents, encoder: nn.Module, plan: Plan | None = None, *, every: int = 250
) -> Stage:
    """Run or resume stage 3; the checkpoint at `path` is renewed every `every` steps."""
    plan = plan or kind.plan
    stage = start(path, kind, plan)
    torch.manual_seed(stage.step)
    lesson = Lesson(kind, plan, data, encoder, kind.language.tokens([""]))
    began, first, total = time.monotonic(), stage.step, 0.0
    while stage.step < plan.steps:
        total += step(stage, lesson)
        if stage.step % every == 0 or stage.step == plan.steps:
            pace = (time.monotonic() - began) / (stage.step - first)
            print(f"denoiser {stage.step}/{plan.steps}: loss {total / every:.5f}, {pace:.3f} s/step", flush=True)
            total = 0.0
            checkpoint.save(path, stage.state())
    return stage
