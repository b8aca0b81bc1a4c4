"""What video models can make is read off their configs: of published ones as published, of tiny ones as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.model_folder import read_model
from jobs.video_folder import frames_multiple_of, makes_video, sides_multiple_of, video_defaults, video_limits
from pipelines.families import frames_multiple_of as by_the_pipeline
from pipelines.load import load_components, new_pipeline
from pipelines.tiny import save_tiny
from pipelines.tiny_videos import save_tiny_video

PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "Wan2.1-T2V-1.3B": (
        "WanPipeline",
        {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]},
        {"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]},
        (16, 4),
    ),
    "Wan2.2-TI2V-5B": (
        "WanPipeline",
        {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]},
        {"_class_name": "AutoencoderKLWan", "scale_factor_spatial": 16, "scale_factor_temporal": 4},
        (32, 4),
    ),
    "LTX-Video": (
        "LTXPipeline",
        {"_class_name": "LTXVideoTransformer3DModel", "patch_size": 1, "patch_size_t": 1},
        {"_class_name": "AutoencoderKLLTXVideo", "patch_size": 4, "patch_size_t": 1, "spatial_compression_ratio": None}
        | {"spatio_temporal_scaling": [True, True, True, False]},
        (32, 8),
    ),
    "CogVideoX-2b": (
        "CogVideoXPipeline",
        {"_class_name": "CogVideoXTransformer3DModel", "patch_size": 2, "sample_frames": 49},
        {"_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [128, 256, 256, 512]},
        (16, 4),
    ),
    "HunyuanVideo": (
        "HunyuanVideoPipeline",
        {"_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "patch_size_t": 1},
        {"_class_name": "AutoencoderKLHunyuanVideo", "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
        (16, 4),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models(model: str) -> None:
    pipeline, denoiser, autoencoder, (side, grain) = PUBLISHED[model]
    assert makes_video(denoiser)
    assert (sides_multiple_of(pipeline, denoiser, autoencoder), frames_multiple_of(autoencoder)) == (side, grain)
    defaults = video_defaults(pipeline, denoiser, autoencoder)
    limits = video_limits(pipeline, denoiser, autoencoder, defaults)
    assert defaults.width % side == defaults.height % side == 0
    assert defaults.num_frames is not None and limits.max_frames is not None
    assert (defaults.num_frames - 1) % grain == (limits.max_frames - 1) % grain == 0
    assert limits.max_frames >= defaults.num_frames
    assert limits.max_pixels >= defaults.width * defaults.height


@pytest.mark.parametrize("family", ["wan", "ltx", "cogvideox", "hunyuan-video"])
def test_a_folder_without_a_sheet_is_known_as_its_pipeline_knows_itself(family: str, tmp_path: Path) -> None:
    folder = save_tiny_video(family, tmp_path / family)
    card, components = read_model(folder), load_components(folder)
    assert card.kind == "video"
    assert card.limits.frames_multiple_of == by_the_pipeline(new_pipeline(components, components.skeleton))


def test_a_sheet_may_leave_frames_out(tmp_path: Path) -> None:
    folder = save_tiny_video("wan", tmp_path / "wan")
    told = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    (folder / "halftone.json").write_text(json.dumps({"defaults": told}), encoding="utf-8")
    card = read_model(folder)
    assert (card.defaults.width, card.defaults.num_frames, card.defaults.fps) == (32, 81, 16)
    assert (card.limits.min_side, card.limits.multiple_of, card.limits.frames_multiple_of) == (32, 16, 4)
    (folder / "halftone.json").write_text(json.dumps({"defaults": told | {"num_frames": 5, "fps": 8}}), "utf-8")
    assert (read_model(folder).defaults.num_frames, read_model(folder).defaults.fps) == (5, 8)


def test_learned_positions_bound_the_frames() -> None:
    pipeline, denoiser, autoencoder, _ = PUBLISHED["CogVideoX-2b"]
    denoiser = denoiser | {"use_learned_positional_embeddings": True}
    defaults = video_defaults(pipeline, denoiser, autoencoder)
    assert video_limits(pipeline, denoiser, autoencoder, defaults).max_frames == 49


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    assert read_model(save_tiny("pixart-sigma", tmp_path / "one")).kind == "image"
