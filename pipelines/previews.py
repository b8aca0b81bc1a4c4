"""How far a run is, as pictures: latents on their way, decoded by the pipeline's own autoencoder.

Knows how pipelines keep their latents. Must not know sessions, jobs, or who looks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.families import UnsupportedModel, autoencoder

PREVIEW_FRAMES = 3
"""Of a video so many latent frames are decoded, evenly spread, each as if it were a video of its own."""

FRAMES_FIRST = frozenset({"CogVideoXTransformer3DModel"})
"""Denoisers of videos whose latents are [n, F, C, h, w]; those of all others are [n, C, F, h, w]."""


def preview(pipeline: Any, latents: Tensor, width: int, height: int, frames: int | None) -> Tensor:
    """Latents of n pictures, or of n videos of `frames` frames, as pictures [m, 3, H, W] in 0..1 on the CPU.

    m is n, or for videos n times as many as there are latent frames, at most `PREVIEW_FRAMES`. Cheap beside a whole
    decode, and not what that would give: a latent frame alone says little of how things move.

    Raises:
        UnsupportedModel: no known layout of latents.
    """
    part = autoencoder(pipeline)
    decoded = latents
    if part is not None:
        vae = getattr(pipeline, part)
        if frames is None:
            ready = _picture_latents(pipeline, vae, latents, width, height)
            decoded = vae.decode(ready.to(vae.dtype), return_dict=False)[0]
        else:
            ready = _few_frames(_video_latents(pipeline, vae, latents, width, height, frames))
            decoded = _decode_alone(vae, ready.to(vae.dtype))
    pictures: Tensor = (decoded.float().cpu() / 2 + 0.5).clamp(0, 1)
    return pictures


def _picture_latents(pipeline: Any, vae: Any, latents: Tensor, width: int, height: int) -> Tensor:
    """[n, C, h, w] as the autoencoder's decoder takes them."""
    if hasattr(pipeline, "_unpack_latents"):
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    if latents.ndim != 4 or getattr(vae.config, "scaling_factor", None) is None:
        raise _unknown(pipeline)
    return _scaled(vae, latents)


def _video_latents(pipeline: Any, vae: Any, latents: Tensor, width: int, height: int, frames: int) -> Tensor:
    """[n, C, F, h, w] as the autoencoder's decoder takes them."""
    if hasattr(pipeline, "_unpack_latents"):  # packed as tokens [n, L, D]
        in_time, in_space = pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
        latents = pipeline._unpack_latents(
            latents,
            (frames - 1) // in_time + 1,
            height // in_space,
            width // in_space,
            pipeline.transformer_spatial_patch_size,
            pipeline.transformer_temporal_patch_size,
        )
    if latents.ndim != 5:
        raise _unknown(pipeline)
    if pipeline.transformer.kind.__name__ in FRAMES_FIRST:
        latents = latents.transpose(1, 2)
    return _scaled(vae, latents)


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents in the scale that the autoencoder works in: by statistics of each channel, or by one factor."""
    config, kept = vae.config, dict(vae.named_buffers(recurse=False))
    mean, deviation = (kept.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
    factor = config.get("scaling_factor") or 1.0
    if mean is None or deviation is None:
        shifted: Tensor = latents / factor + (config.get("shift_factor") or 0.0)
        return shifted
    shape = (1, -1, *(1,) * (latents.ndim - 2))
    mean, deviation = (torch.as_tensor(of).to(latents).reshape(shape) for of in (mean, deviation))
    restored: Tensor = latents * deviation / factor + mean
    return restored


def _few_frames(latents: Tensor) -> Tensor:
    """[n, C, F, h, w] to [n * m, C, 1, h, w]: m of the F latent frames, the first and the last among them."""
    count = latents.shape[2]
    chosen = sorted({round(place * (count - 1) / (PREVIEW_FRAMES - 1)) for place in range(PREVIEW_FRAMES)})
    return latents[:, :, chosen].transpose(1, 2).flatten(0, 1).unsqueeze(2)


def _decode_alone(vae: Any, latents: Tensor) -> Tensor:
    """[m, C, 1, h, w] to the last frame of each: [m, 3, H, W]."""
    if vae.config.get("timestep_conditioning"):
        decoded = vae.decode(latents, latents.new_zeros(latents.shape[0]), return_dict=False)[0]
    else:
        decoded = vae.decode(latents, return_dict=False)[0]
    last: Tensor = decoded[:, :, -1]
    return last


def _unknown(pipeline: Any) -> UnsupportedModel:
    name = type(pipeline).__name__
    return UnsupportedModel(f"{name} keeps latents in a layout that previews do not know; ask for 0 previews")
