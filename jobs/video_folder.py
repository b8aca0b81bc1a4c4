"""What a model of video can make, by the configs in its folder: how many frames, which sizes, and what is usual.

Reads configs as JSON that others opened. Must not know cards' profiles, folders or diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.profile import Defaults, Limits

Config = Mapping[str, Any]

MAX_PIXELS = 921_600
"""Of a frame: 1280x720."""
MAX_SIDE = 1280
MAX_FRAMES = 161


@dataclass(frozen=True, slots=True)
class Usual:
    """What a pipeline makes by its own defaults, and which multiple of sides it insists on."""

    width: int
    height: int
    frames: int
    fps: int
    guidance: float
    side: int


USUAL: Mapping[str, Usual] = {
    "WanPipeline": Usual(832, 480, 81, 16, 5.0, 16),
    "LTXPipeline": Usual(704, 512, 161, 25, 3.0, 32),
    "CogVideoXPipeline": Usual(720, 480, 49, 8, 6.0, 8),
    "HunyuanVideoPipeline": Usual(1280, 720, 129, 24, 6.0, 16),
}
_OTHERS = Usual(512, 512, 17, 8, 5.0, 8)

_SPACE = ("scale_factor_spatial", "spatial_compression_ratio")
_TIME = ("scale_factor_temporal", "temporal_compression_ratio")
_TIME_BY_CLASS = {"AutoencoderKLWan": 4, "AutoencoderKLCogVideoX": 4, "AutoencoderKLHunyuanVideo": 4}
"""What a config that does not say it stands for: the class's default."""


def makes_video(denoiser: Config) -> bool:
    """Whether a denoiser is one of moving pictures, by its class's name in diffusers: `WanTransformer3DModel`."""
    return "3D" in str(denoiser.get("_class_name", ""))


def frames_multiple_of(autoencoder: Config) -> int:
    """k, where a video has 1 + a multiple of k frames: how many frames one latent stands for."""
    if (told := _first(autoencoder, _TIME)) is not None:
        return told
    if (halvings := autoencoder.get("spatio_temporal_scaling")) is not None:
        return int(autoencoder.get("patch_size_t", 1)) << sum(map(bool, halvings))
    return _TIME_BY_CLASS.get(str(autoencoder.get("_class_name")), 1)


def sides_multiple_of(pipeline: str, denoiser: Config, autoencoder: Config) -> int:
    """What both sides must be a multiple of: pixels of a latent, by latents of a token, by what the pipeline asks."""
    space = _first(autoencoder, _SPACE)
    if space is None and (halvings := autoencoder.get("spatio_temporal_scaling")) is not None:
        space = int(autoencoder.get("patch_size", 4)) << sum(map(bool, halvings))
    if space is None:
        blocks = autoencoder.get("block_out_channels")
        space = 2 ** (len(blocks) - 1) if blocks else 8
    patch = denoiser.get("patch_size", 1)
    patch = max(patch[1:]) if isinstance(patch, list) else int(patch or 1)
    return math.lcm(space * patch, USUAL.get(pipeline, _OTHERS).side)


def video_defaults(pipeline: str, denoiser: Config, autoencoder: Config) -> Defaults:
    """What a request for a video gets where neither it nor `halftone.json` says anything."""
    usual, grain = USUAL.get(pipeline, _OTHERS), frames_multiple_of(autoencoder)
    side = sides_multiple_of(pipeline, denoiser, autoencoder)
    frames = int(denoiser.get("sample_frames") or usual.frames)
    return Defaults(
        width=max(side, usual.width - usual.width % side),
        height=max(side, usual.height - usual.height % side),
        num_inference_steps=25,
        guidance_scale=usual.guidance,
        num_frames=frames - (frames - 1) % grain,
        fps=usual.fps,
    )


def video_limits(pipeline: str, denoiser: Config, autoencoder: Config, defaults: Defaults) -> Limits:
    """What a request for a video may ask for where `halftone.json` does not say."""
    grain, fixed = frames_multiple_of(autoencoder), denoiser.get("use_learned_positional_embeddings")
    most = defaults.num_frames or 1
    most = most if fixed else max(most, MAX_FRAMES - (MAX_FRAMES - 1) % grain)
    return Limits(
        min_side=min(256, defaults.width, defaults.height),
        max_side=max(MAX_SIDE, defaults.width, defaults.height),
        multiple_of=sides_multiple_of(pipeline, denoiser, autoencoder),
        max_pixels=max(MAX_PIXELS, defaults.width * defaults.height),
        max_frames=most,
        frames_multiple_of=grain,
    )


def _first(config: Config, names: tuple[str, ...]) -> int | None:
    return next((int(config[name]) for name in names if config.get(name)), None)
