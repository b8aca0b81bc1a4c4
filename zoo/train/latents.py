"""Training data of stage 3: many scenes, their latents and several captions each as tokens, made once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from zoo.shapes.draw import draw
from zoo.shapes.world import random_scene
from zoo.train import checkpoint, text

WORDINGS = 3


@dataclass(frozen=True, slots=True)
class Latents:
    """Pairs of picture and captions.

    Attributes:
        latents: [count, channels, 8, 8] float16, already scaled to unit variance.
        ids: [count, WORDINGS, LENGTH] int16 tokens.
        scale: what the autoencoder's latents were multiplied with.
    """

    latents: torch.Tensor
    ids: torch.Tensor
    scale: float


def _encode(
    autoencoder: AutoencoderKL, language: text.Language, rng: np.random.Generator, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [random_scene(rng, 1 + int(rng.random() < 0.68), unseen=False) for _ in range(count)]
    pixels = np.stack([draw(scene, rng) for scene in scenes])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        means = autoencoder.encode(batch).latent_dist.mean
    captions = [text.say(scene, rng).text for scene in scenes for _ in range(WORDINGS)]
    ids = language.tokens(captions)
    return means, ids.reshape(count, WORDINGS, text.LENGTH).to(torch.int16)


def make(
    path: Path, autoencoder: AutoencoderKL, language: text.Language, *, count: int = 40_000, chunk: int = 500
) -> Latents:
    """Load the data at `path`, or make it: `count` scenes, none of them held out."""
    state = checkpoint.load(path)
    if state is None:
        rng = np.random.default_rng(1)
        parts = []
        for done in range(0, count, chunk):
            parts.append(_encode(autoencoder, language, rng, chunk))
            if done % 5000 == 0:
                print(f"latents {done}/{count}", flush=True)
        means = torch.cat([part[0] for part in parts])
        scale = 1 / float(means.std())
        state = {"latents": (means * scale).half(), "ids": torch.cat([part[1] for part in parts]), "scale": scale}
        checkpoint.save(path, state)
    return Latents(state["latents"], state["ids"], state["scale"])
