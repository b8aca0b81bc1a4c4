"""Training data of stage 3: many examples' latents and several captions each as tokens, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.train import checkpoint, text
from zoo.train.world import World

WORDINGS = 3


@dataclass(frozen=True, slots=True)
class Latents:
    """Examples with captions.

    Attributes:
        latents: [count, channels, ...] float16, of unit variance.
        ids: [count, WORDINGS, LENGTH] int16 tokens.
        mean: [channels], what was taken off the autoencoder's latents.
        deviation: [channels], what they were then divided by.
    """

    latents: Tensor
    ids: Tensor
    mean: Tensor
    deviation: Tensor


def _encode(
    autoencoder: Any, language: text.Language, world: World, rng: np.random.Generator, count: int
) -> tuple[Tensor, Tensor]:
    batch, captions = world.examples(rng, count, WORDINGS)
    with torch.inference_mode():
        means = autoencoder.encode(batch).latent_dist.mean
    return means, language.tokens(captions).reshape(count, WORDINGS, text.LENGTH).to(torch.int16)


def _spread(means: Tensor, *, per_channel: bool) -> tuple[Tensor, Tensor]:
    """What to take off and to divide by, [channels] each: of every channel, or nothing and one factor for all."""
    if per_channel:
        deviation, mean = torch.std_mean(means.transpose(0, 1).flatten(1), dim=1)
        return mean, deviation
    return torch.zeros(means.shape[1]), means.std().expand(means.shape[1]).clone()


def make(
    path: Path, autoencoder: Any, language: text.Language, world: World, *, count: int = 40_000, chunk: int = 100
) -> Latents:
    """Load the data at `path`, or make it: `count` examples, none of them of held-out combinations."""
    state = checkpoint.load(path)
    if state is None:
        rng = np.random.default_rng(1)
        parts = []
        for done in range(0, count, chunk):
            parts.append(_encode(autoencoder, language, world, rng, chunk))
            if done % 5000 == 0:
                print(f"latents {done}/{count}", flush=True)
        means, ids = (torch.cat(column) for column in zip(*parts, strict=True))
        parts.clear()  # as large as all latents
        mean, deviation = _spread(means, per_channel=world.autoencoder.per_channel)
        across = (-1, *(1 for _ in means.shape[2:]))
        scaled = means.sub_(mean.reshape(across)).div_(deviation.reshape(across))
        state = {"latents": scaled.half(), "ids": ids, "mean": mean, "deviation": deviation}
        checkpoint.save(path, state)
    return Latents(**state)
