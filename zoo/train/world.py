"""What training asks of a world: words, captions with their meaning, and examples. Knows no particular one."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from zoo.train.autoencoder import Kind as Autoencoder


class World(Protocol):
    """What a model learns to show: its words, captions with their meaning, and examples with captions."""

    @property
    def autoencoder(self) -> Autoencoder:
        """What makes latents of its examples."""

    @property
    def words(self) -> tuple[str, ...]:
        """What is one token each."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Size of each head."""

    def saying(self, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A random caption of a training scene, and the class that each head must give."""

    def examples(self, rng: np.random.Generator, count: int, wordings: int) -> tuple[Tensor, list[str]]:
        """Random training examples [count, 3, ...] float32 in -1..1, and so many captions of each, in order."""
