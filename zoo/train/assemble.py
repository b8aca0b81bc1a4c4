"""Puts the trained parts together as a plain diffusers StableDiffusionPipeline and writes its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from zoo.shapes.captions import VOCABULARY
from zoo.train import tokenizer

CARD: dict[str, Any] = {
    "id": "shapes-unet",
    "kind": "image",
    "description": "Coloured shapes on plain backgrounds: one or two objects, their sizes and how they lie.",
    "defaults": {"width": 64, "height": 64, "num_inference_steps": 25, "guidance_scale": 3.0},
    "limits": {"min_side": 32, "max_side": 128, "multiple_of": 16, "max_pixels": 16384, "max_steps": 50},
    "trained_sizes": [[64, 64]],
    "vocabulary": list(VOCABULARY),
}


def scheduler() -> DDIMScheduler:
    """The noise schedule that the denoiser is trained and sampled with: v-prediction down to zero signal."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def pipeline(
    autoencoder: AutoencoderKL, encoder: CLIPTextModel, denoiser: UNet2DConditionModel, scale: float
) -> StableDiffusionPipeline:
    """A pipeline of the parts; `scale` is what brings the autoencoder's latents to unit variance."""
    autoencoder.register_to_config(scaling_factor=scale)
    pipe = StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer.build(),
        unet=denoiser.eval(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Save a pipeline with half-precision convolutional parts, and the card that names its limits and words."""
    pipe.vae.to(torch.float16)
    pipe.unet.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "halftone.json").write_text(json.dumps(CARD, indent=1) + "\n")
