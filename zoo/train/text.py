"""Stage 2: the text encoder, taught to say in features what a caption means. Knows no pictures, and no architecture.

A denoiser that must learn language from pictures alone spends most of its steps on it. Captions of a made-up world
come with their meaning, so the encoder is taught first, and alone: from its states, linear
heads must tell which colour, shape and size lie at which place, and the background. They are thrown away afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.shapes.captions import VOCABULARY, caption
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Relation, Scene, random_scene
from zoo.train import checkpoint

WIDTH = 128
LENGTH = 32
"""Tokens per prompt, ends included; longer prompts are cut and reported."""

WORDS = tuple(sorted({*VOCABULARY, "and", "with", "in", "is", "there", "next", "it", "its"}))
"""What is one token each: the captions' words, and a few that prompts hold although no caption does."""
PLACES = ("middle", "left", "right", "top", "bottom")
_SIDES = {Relation.LEFT: (1, 2), Relation.RIGHT: (2, 1), Relation.ABOVE: (3, 4), Relation.BELOW: (4, 3)}
_VALUES = [len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 2]
CLASSES = [*(_VALUES * len(PLACES)), len(BACKGROUNDS) + 1, len(COLOURS)]
"""Size of each head: colour, shape, size at each place (0: nothing there; last size: unsaid), the background, and the
colour that is named first. An encoder that sees positions by their distance alone must learn order before it can tell
which of two things lies where, and does not learn it from the places alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 2 does: optimizer steps, captions per step, peak learning rate."""

    steps: int = 4000
    batch: int = 64
    rate: float = 1.5e-3


@dataclass(frozen=True, slots=True)
class Saying:
    """A caption, its scene, and which attributes it left unsaid."""

    text: str
    scene: Scene
    without: frozenset[str]


def say(scene: Scene, rng: np.random.Generator) -> Saying:
    """A random caption; now and then the sizes or the background are left unsaid, or it begins as a sentence does."""
    without = frozenset(name for name in ("size", "background") if rng.random() < 0.08)
    words = caption(scene, rng, without=without)
    return Saying(words.capitalize() if rng.random() < 0.15 else words, scene, without)


def meaning(saying: Saying) -> list[int]:
    """The class that each head must give, in the order of CLASSES."""
    slots = _SIDES[saying.scene.relation] if saying.scene.relation else (0,)
    classes = [0] * (3 * len(PLACES) + 2)
    for slot, thing in zip(slots, saying.scene.things, strict=True):
        classes[3 * slot] = 1 + list(COLOURS).index(thing.colour)
        classes[3 * slot + 1] = 1 + SHAPES.index(thing.shape)
        classes[3 * slot + 2] = len(SIZES) + 1 if "size" in saying.without else 1 + list(SIZES).index(thing.size)
    if "background" not in saying.without:
        classes[-2] = 1 + list(BACKGROUNDS).index(saying.scene.background)
    classes[-1] = next(list(COLOURS).index(word) for word in saying.text.lower().split() if word in COLOURS)
    return classes


class Language(Protocol):
    """A tokenizer, an encoder for it, and which of the encoder's states can know the whole caption."""

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


def loss_of(states: Tensor, knowing: Tensor, heads: nn.Linear, targets: Tensor) -> Tensor:
    """Mean cross entropy of all heads at every position that can know the caption."""
    logits = heads(states[knowing]).split(CLASSES, dim=-1)
    wanted = targets[:, None].expand(-1, knowing.shape[1], -1)[knowing]
    losses = [functional.cross_entropy(logit, wanted[:, i]) for i, logit in enumerate(logits)]
    return torch.stack(losses).mean()


def train(path: Path, language: Language, plan: Plan = Plan(), *, every: int = 250) -> nn.Module:
    """Run or resume stage 2; the checkpoint at `path` is renewed every `every` steps."""
    torch.manual_seed(0)
    model, heads = language.build(), nn.Linear(WIDTH, sum(CLASSES))
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
        sayings = [say(random_scene(rng, 1 + int(rng.random() < 0.7), unseen=False), rng) for _ in range(plan.batch)]
        ids = language.tokens([saying.text for saying in sayings])
        targets = torch.tensor([meaning(saying) for saying in sayings])
        loss = loss_of(language.states(model, ids), language.knowing(ids), heads, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            print(f"text {step + 1}/{plan.steps}: loss {loss.item():.5f}", flush=True)
            checkpoint.save(path, {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model
