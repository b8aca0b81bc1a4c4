"""Tiny random denoisers of every family, as bare modules: what tests of structure and exactness run on.

Must not be used to make pictures for people: they are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import nn

import quant
from pipelines.examples import example_call
from pipelines.tiny import open_gates


@dataclass(frozen=True, slots=True)
class TinyDenoiser:
    """One family's tiny model.

    Attributes:
        kind: name of its diffusers class.
        config: constructor arguments.
        per_token: whether its example has a timestep for every token, as in image-to-video.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    per_token: bool = False


def tiny_denoiser(name: str, *, rows: int = 1, seed: int = 0) -> tuple[nn.Module, quant.Call]:
    """A module of a family (a key of `TINY_DENOISERS`) with random float32 weights, and a call of `rows` rows for it.

    Raises:
        KeyError: no such family; the message lists the known ones.
    """
    if name not in TINY_DENOISERS:
        raise KeyError(f"no tiny denoiser of family {name!r}; there are {', '.join(TINY_DENOISERS)}")
    tiny = TINY_DENOISERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = getattr(diffusers, tiny.kind)(**tiny.config)
        open_gates(module)
    module.eval().requires_grad_(False)
    return module, example_call(module, rows, seed=seed, per_token=tiny.per_token)


_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
_CONDITIONED = _UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
}
_PIXART = {
    "sample_size": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_channels": 16,
    "cross_attention_dim": 32,
}
_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 2}
_FLUX = _HEADS | {"in_channels": 16, "num_single_layers": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)}
_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
}
_LTX = _HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32}
_COGVIDEOX = _HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 7,
}

TINY_DENOISERS: Mapping[str, TinyDenoiser] = {
    "unet": TinyDenoiser(
        "UNet2DModel", _UNET | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    ),
    "unet-class": TinyDenoiser(
        "UNet2DModel",
        _UNET
        | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        | {"num_class_embeds": 10},
    ),
    "sd15": TinyDenoiser("UNet2DConditionModel", _CONDITIONED),
    "lcm": TinyDenoiser("UNet2DConditionModel", _CONDITIONED | {"time_cond_proj_dim": 16}),
    "sdxl": TinyDenoiser(
        "UNet2DConditionModel",
        _CONDITIONED
        | {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
        | {"projection_class_embeddings_input_dim": 6 * 8 + 32},
    ),
    "pixart-sigma": TinyDenoiser("PixArtTransformer2DModel", _PIXART | {"use_additional_conditions": False}),
    "pixart-sizes": TinyDenoiser(
        "PixArtTransformer2DModel",
        _PIXART | {"use_additional_conditions": True, "attention_head_dim": 12, "cross_attention_dim": 48},
    ),
    "dit": TinyDenoiser(
        "DiTTransformer2DModel",
        {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 8, "sample_size": 8}
        | {"num_embeds_ada_norm": 10},
    ),
    "sd3": TinyDenoiser(
        "SD3Transformer2DModel",
        _HEADS
        | {"sample_size": 16, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 8},
    ),
    "sd35-medium": TinyDenoiser(
        "SD3Transformer2DModel",
        _HEADS
        | {"sample_size": 16, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 8}
        | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
    ),
    "flux": TinyDenoiser("FluxTransformer2DModel", _FLUX | {"pooled_projection_dim": 8, "guidance_embeds": True}),
    "flux2": TinyDenoiser(
        "Flux2Transformer2DModel", _FLUX | {"timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)}
    ),
    "chroma": TinyDenoiser(
        "ChromaTransformer2DModel",
        _FLUX | {"approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 2},
    ),
    "qwen-image": TinyDenoiser(
        "QwenImageTransformer2DModel",
        _HEADS | {"in_channels": 16, "out_channels": 4, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6)},
    ),
    "sana": TinyDenoiser(
        "SanaTransformer2DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16}
        | {"cross_attention_dim": 32, "caption_channels": 16, "sample_size": 8},
    ),
    "z-image": TinyDenoiser(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        | {"cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [64, 16, 16]},
    ),
    "wan": TinyDenoiser("WanTransformer3DModel", _WAN),
    "wan-ti2v": TinyDenoiser("WanTransformer3DModel", _WAN, per_token=True),
    "ltx": TinyDenoiser("LTXVideoTransformer3DModel", _LTX),
    "ltx-i2v": TinyDenoiser("LTXVideoTransformer3DModel", _LTX, per_token=True),
    "cogvideox": TinyDenoiser("CogVideoXTransformer3DModel", _COGVIDEOX),
    "hunyuan-video": TinyDenoiser(
        "HunyuanVideoTransformer3DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "num_single_layers": 2, "num_refiner_layers": 1}
        | {"text_embed_dim": 16, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
    ),
    "minimax-h3": TinyDenoiser(
        "MiniMaxH3Transformer3DModel",
        _HEADS
        | {"hidden_size": 24, "num_refiner_layers": 1, "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 6}
        | {"text_dim": 16, "freq_dim": 16, "time_embed_hidden_dim": 24, "time_embed_dim": 12, "rope_freq_dim": 2},
    ),
}
"""Name of a family to its tiny model."""
