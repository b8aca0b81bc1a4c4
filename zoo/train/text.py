"""Stage 2: the text encoder, taught to say in features what a caption means. Knows no pictures, and no architecture.

A denoiser that must learn language from pictures alone spends most of its steps on it. Captions of a made-up world
come with their meaning, so the encoder is taught first, and alone: from its states, linear heads must tell what the
world says of each caption, as which colour, shape and size lie at which place. They are thrown away afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.train import checkpoint
from zoo.train.world import World

WIDTH = 128
LENGTH = 32
"""Tokens per prompt, ends included; longer prompts are cut and reported."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 2 does: optimizer steps, captions per step, peak learning rate."""

    steps: int = 4000
    batch: int = 64
    rate: float = 1.5e-3


class Language(Protocol):
    """A tokenizer, an encoder for it, and which of the encoder's states can know the whole caption."""

    words: Any
    """The tokenizer, of transformers."""

    def tokens(self, texts: list[str]) -> Tensor:
        """Token ids as the pipeline makes them, [batch, LENGTH] int64."""

    def build(self) -> nn.Module:
        """The untrained encoder of width WIDTH."""

    def states(self, encoder: nn.Module, ids: Tensor) -> Tensor:
        """What the denoiser gets, [batch, LENGTH, WIDTH]."""

    def knowing(self, ids: Tensor) -> Tensor:
        """[batch, LENGTH] bool: positions whose state can tell all of the caption."""


def padded(words: Any, texts: list[str]) -> Tensor:
    """Token ids by a tokenizer of transformers, [batch, LENGTH] int64."""
    tokens = words(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids


def loss_of(states: Tensor, knowing: Tensor, heads: nn.Linear, classes: tuple[int, ...], targets: Tensor) -> Tensor:
    """Mean cross entropy of all heads at every position that can know the caption."""
    logits = heads(states[knowing]).split(list(classes), dim=-1)
    wanted = targets[:, None].expand(-1, knowing.shape[1], -1)[knowing]
    losses = [functional.cross_entropy(logit, wanted[:, i]) for i, logit in enumerate(logits)]
    return torch.stack(losses).mean()


def train(path: Path, language: Language, world: World, plan: Plan = Plan(), *, every: int = 250) -> nn.Module:
    """Run or resume stage 2; the checkpoint at `path` is renewed every `every` steps."""
    torch.manual_seed(0)
    model, heads = language.build(), nn.Linear(WIDTH, sum(world.classes))
    both = nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(both.parameters(), lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01)
    state, start = checkpoint.load(path), 0
    if state is not None:
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    rng = np.random.default_rng(start)
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = checkpoint.learning_rate(step, plan.steps, plan.rate)
        texts, meanings = zip(*(world.saying(rng) for _ in range(plan.batch)), strict=True)
        ids = language.tokens(list(texts))
        targets = torch.tensor(meanings)
        loss = loss_of(language.states(model, ids), language.knowing(ids), heads, world.classes, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            print(f"text {step + 1}/{plan.steps}: loss {loss.item():.5f}", flush=True)
            checkpoint.save(path, {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model
