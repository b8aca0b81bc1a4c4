"""Stage 2: the text encoder (CLIPTextModel), taught to say in features what a caption means. Knows no pictures.

A denoiser that must learn language from pictures alone spends most of its steps on it. Captions of a made-up world
come with their meaning, so the encoder is taught first, and alone: from the states at the end of a caption, linear
heads must tell which colour, shape and size lie at which place, and the background. They are thrown away afterwards.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zoo.shapes.captions import caption
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Relation, Scene, random_scene
from zoo.train import checkpoint, tokenizer

WIDTH = 128
PLACES = ("middle", "left", "right", "top", "bottom")
_SIDES = {Relation.LEFT: (1, 2), Relation.RIGHT: (2, 1), Relation.ABOVE: (3, 4), Relation.BELOW: (4, 3)}
_VALUES = [len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 2]
CLASSES = [*(_VALUES * len(PLACES)), len(BACKGROUNDS) + 1]
"""Size of each head: colour, shape, size at each place (0: nothing there; last size: unsaid), then the background."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What stage 2 does: optimizer steps, captions per step, peak learning rate."""

    steps: int = 1650
    batch: int = 64
    rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class Saying:
    """A caption, its scene, and which attributes it left unsaid."""

    text: str
    scene: Scene
    without: frozenset[str]


def say(scene: Scene, rng: np.random.Generator) -> Saying:
    """A random caption; now and then the sizes or the background are left unsaid."""
    without = frozenset(name for name in ("size", "background") if rng.random() < 0.08)
    return Saying(caption(scene, rng, without=without), scene, without)


def meaning(saying: Saying) -> list[int]:
    """The class that each head must give, in the order of CLASSES."""
    slots = _SIDES[saying.scene.relation] if saying.scene.relation else (0,)
    classes = [0] * (3 * len(PLACES) + 1)
    for slot, thing in zip(slots, saying.scene.things, strict=True):
        classes[3 * slot] = 1 + list(COLOURS).index(thing.colour)
        classes[3 * slot + 1] = 1 + SHAPES.index(thing.shape)
        classes[3 * slot + 2] = len(SIZES) + 1 if "size" in saying.without else 1 + list(SIZES).index(thing.size)
    if "background" not in saying.without:
        classes[-1] = 1 + list(BACKGROUNDS).index(saying.scene.background)
    return classes


def build(words: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: 3 layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def encode_tokens(words: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids as StableDiffusionPipeline makes them, [batch, LENGTH] int64."""
    tokens = words(texts, padding="max_length", max_length=tokenizer.LENGTH, truncation=True, return_tensors="pt")
    ids: torch.Tensor = tokens.input_ids
    return ids


def loss_of(states: torch.Tensor, ids: torch.Tensor, heads: nn.Linear, targets: torch.Tensor, end: int) -> torch.Tensor:
    """Mean cross entropy of all heads at every position from the caption's end on."""
    finished = (ids == end).cumsum(1) > 0
    logits = heads(states[finished]).split(CLASSES, dim=-1)
    wanted = targets[:, None].expand(-1, ids.shape[1], -1)[finished]
    losses = [functional.cross_entropy(logit, wanted[:, i]) for i, logit in enumerate(logits)]
    return torch.stack(losses).mean()


def train(path: Path, plan: Plan = Plan(), *, every: int = 250) -> CLIPTextModel:
    """Run or resume stage 2; the checkpoint at `path` is renewed every `every` steps."""
    torch.manual_seed(0)
    words = tokenizer.build()
    model, heads = build(words), nn.Linear(WIDTH, sum(CLASSES))
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
        ids = encode_tokens(words, [saying.text for saying in sayings])
        targets = torch.tensor([meaning(saying) for saying in sayings])
        loss = loss_of(model(ids).last_hidden_state, ids, heads, targets, words.eos_token_id)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            print(f"text {step + 1}/{plan.steps}: loss {loss.item():.5f}", flush=True)
            checkpoint.save(path, {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model


if __name__ == "__main__":
    train(Path(sys.argv[1]), Plan(steps=int(os.environ.get("STEPS", Plan().steps))))
