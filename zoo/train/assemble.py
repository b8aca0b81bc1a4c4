"""Puts trained parts together as a plain diffusers pipeline and writes its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from zoo.shapes.captions import VOCABULARY
from zoo.train.denoiser import Kind

CARD: dict[str, Any] = {
    "kind": "image",
    "description": "Coloured shapes on plain backgrounds: one or two objects, their sizes and how they lie.",
    "defaults": {"width": 64, "height": 64, "num_inference_steps": 25, "guidance_scale": 3.0},
    "limits": {"min_side": 32, "max_side": 128, "multiple_of": 16, "max_pixels": 16384, "max_steps": 50},
    "trained_sizes": [[64, 64]],
    "vocabulary": list(VOCABULARY),
}


def pipeline(kind: Kind, autoencoder: AutoencoderKL, encoder: nn.Module, denoiser: nn.Module, scale: float) -> Any:
    """A pipeline of the parts; `scale` is what brings the autoencoder's latents to unit variance."""
    autoencoder.register_to_config(scaling_factor=scale)
    pipe = kind.pipeline(autoencoder.eval(), encoder.eval(), denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(kind: Kind, pipe: Any, folder: Path) -> None:
    """Save a pipeline in half precision, and the card that names its limits and words."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    card = json.dumps({"id": kind.name, **CARD}, indent=1)
    (folder / "halftone.json").write_text(card + "\n", encoding="utf-8")
