"""Puts trained parts together as a plain diffusers pipeline and writes its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.train.denoiser import Kind
from zoo.train.latents import Latents


def pipeline(kind: Kind, autoencoder: Any, encoder: nn.Module, denoiser: nn.Module, data: Latents) -> Any:
    """A pipeline of the parts; the data says what brings the autoencoder's latents to unit variance."""
    kind.world.autoencoder.scale(autoencoder, data.mean, data.deviation)
    pipe = kind.pipeline(autoencoder.eval(), encoder.eval(), denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(kind: Kind, pipe: Any, folder: Path) -> None:
    """Save a pipeline in half precision, and the card that names its limits and words."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    card = json.dumps({"id": kind.name, **kind.card}, indent=1)
    (folder / "halftone.json").write_text(card + "\n", encoding="utf-8")
