"""Tiny models that take no prompts, as folders: of nothing (pixels and latents), and of classes by number or name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.deprecated import LDMPipeline

from pipelines.tiny import save_random, vae

LABELS = {"0": "red", "1": "green, verdant", "2": "blue", "3": "gray"}


def save_promptless(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes one of MODELS to a folder in diffusers layout."""
    save_random(MODELS[name], folder, seed=seed)
    if name == "dit":  # diffusers reads the names from there but does not write them
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"id2label": LABELS}))
    return folder


def unet(channels: int = 3, **options: Any) -> Any:
    """16x16 samples."""
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        **options,
    ).eval()


def _dit(classes: int) -> Any:
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=classes,
        ).eval(),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(),
    )


def _ldm() -> Any:
    vqvae = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=3,
        num_vq_embeddings=16,
    ).eval()
    return LDMPipeline(vqvae=vqvae, unet=unet(), scheduler=diffusers.DDIMScheduler())


MODELS: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: diffusers.DDPMPipeline(unet=unet(), scheduler=diffusers.DDPMScheduler()),
    "ddim": lambda: diffusers.DDIMPipeline(unet=unet(1), scheduler=diffusers.DDIMScheduler()),
    "ldm": _ldm,
    "dit": lambda: _dit(4),
    "dit-guided": lambda: _dit(1000),
    "consistency": lambda: diffusers.ConsistencyModelPipeline(
        unet=unet(num_class_embeds=4), scheduler=diffusers.CMStochasticIterativeScheduler()
    ),
}
"""Name to the function that builds its pipeline. Pictures are 16x16, of `ldm` 32x32; of `ddim` gray."""

SUBJECTS: dict[str, tuple[Any, Any]] = {
    "ddpm": (None, None),
    "ddim": (None, None),
    "ldm": (None, None),
    "dit": (1, 3),
    "dit-guided": (7, 999),
    "consistency": (0, 3),
}
"""Two subjects of each."""
