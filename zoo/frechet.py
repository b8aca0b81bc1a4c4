"""Fréchet distance of pictures from those of the shapes world, by features that a few hundred pictures suffice for.

Features are the posterior means of shapes-unet's own autoencoder, averaged over each quarter of the picture: 12 latent
channels by 2x2 places, 48 numbers, so that 128 pictures already give a covariance of full rank. Measured against 2,048
of the world: 256 others of the world are 0.17 to 0.27 away, 512 are 0.08 to 0.12; 256 with pixel noise of deviation
0.1 are 0.43, with two things each 1.6. Compare only sets of equally many pictures. The usual distance
(Heusel et al., 2017) takes 2,048 features of a network trained on photographs and tens of thousands of pictures: its
numbers and these cannot be compared. Must not know who drew the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from zoo.shapes.draw import draw
from zoo.shapes.world import SIDE, random_scene

AUTOENCODER = Path(__file__).parent / "models" / "shapes-unet" / "vae"
PLACES = 2
"""Parts that each side of a picture is cut into."""

FEWEST = 128
"""Pictures that a distance needs: clearly more than there are features."""

WORLD_PICTURES = 2048
BATCH = 64


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean [F] and covariance [F, F] of features, float64."""

    mean: Tensor
    covariance: Tensor


def gaussian(features: Tensor) -> Gaussian:
    """The Gaussian of features [N, F]: their mean and unbiased covariance.

    Raises:
        ValueError: there are fewer than two, or one is NaN or infinite.
    """
    if features.ndim != 2 or len(features) < 2 or not bool(features.isfinite().all()):
        raise ValueError(f"a Gaussian takes finite features [N, F] of at least 2 pictures, not {list(features.shape)}")
    values = features.double()
    centred = values - values.mean(dim=0)
    return Gaussian(values.mean(dim=0), centred.T @ centred / (len(values) - 1))


def distance(one: Gaussian, other: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau, 1982).

    The last trace is taken of (S1^(1/2) S2 S1^(1/2))^(1/2), which is symmetric, so that only roots of eigenvalues that
    are negative by rounding have to be cut to 0: no complex numbers, no failure on covariances without full rank.
    """
    root = _root(one.covariance)
    eigenvalues = torch.linalg.eigvalsh(_symmetric(root @ other.covariance @ root))
    both = eigenvalues.clamp(min=0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, float(apart + one.covariance.trace() + other.covariance.trace() - 2 * both))


def _root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(_symmetric(matrix))
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


class ShapesWorld:
    """Pictures of the world itself, of scenes drawn as prompts are: half with one thing, half with two."""

    def __init__(self, *, unseen: bool, pictures: int = WORLD_PICTURES, seed: int = 2027) -> None:
        """`unseen` scenes are of combinations kept out of training; the same arguments give the same world."""
        self._autoencoder: Any = AutoencoderKL.from_pretrained(
            AUTOENCODER, use_safetensors=True, local_files_only=True
        ).eval()
        batches = [self.features(drawn) for drawn in self._draw(unseen, pictures, seed)]
        self._truth = gaussian(torch.cat(batches))

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 3, 64, 64] float in 0..1 to [n, 48] float64.

        Raises:
            ValueError: the pictures have another shape.
        """
        if pictures.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"the shapes world is {SIDE}x{SIDE} RGB; got pictures of {list(pictures.shape[1:])}")
        with torch.inference_mode():
            latents = self._autoencoder.encode(pictures.float() * 2 - 1).latent_dist.mean
            pooled: Tensor = functional.adaptive_avg_pool2d(latents, PLACES)
            return pooled.flatten(1).double()

    def distance(self, features: Tensor) -> float:
        """Fréchet distance of pictures with features [N, 48] from the world's.

        Raises:
            ValueError: they are too few for a distance that means anything.
        """
        if len(features) < FEWEST:
            raise ValueError(f"the Fréchet distance needs at least {FEWEST} pictures, got {len(features)}")
        return distance(gaussian(features), self._truth)

    @staticmethod
    def _draw(unseen: bool, count: int, seed: int) -> list[Tensor]:
        rng = np.random.default_rng(seed)
        drawn = [draw(random_scene(rng, 1 + i % 2, unseen=unseen), rng) for i in range(count)]
        whole = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
        return list(torch.split(whole, BATCH))
