"""Denoisers of public models as facts: class and config, so that memory can be planned before anything is downloaded.

Configs are those of each model's transformer/ or unet/ folder, as far as they differ from the class's defaults in
diffusers 0.42. Must not know how memory is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from torch import nn

from pipelines.skeletons import fake_module


@dataclass(frozen=True, slots=True)
class PublicDenoiser:
    """One public model's denoiser.

    Attributes:
        source: where the model is published.
        kind: name of its diffusers class.
        config: constructor arguments that differ from the class's defaults.
        per_token: whether it takes a timestep for every token.
    """

    source: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    per_token: bool = False

    def build(self) -> nn.Module:
        """The module at its full size, without memory for weights."""
        return fake_module(getattr(diffusers, self.kind), self.config)


_UNET, _SD3, _WAN = "UNet2DConditionModel", "SD3Transformer2DModel", "WanTransformer3DModel"
_COGVIDEOX, _PIXART = "CogVideoXTransformer3DModel", "PixArtTransformer2DModel"

PUBLIC: Mapping[str, PublicDenoiser] = {
    "stable-diffusion-1.5": PublicDenoiser(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        _UNET,
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ),
    "stable-diffusion-xl": PublicDenoiser(
        "stabilityai/stable-diffusion-xl-base-1.0",
        _UNET,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "pixart-alpha": PublicDenoiser(
        "PixArt-alpha/PixArt-XL-2-1024-MS", _PIXART, {"caption_channels": 4096, "use_additional_conditions": True}
    ),
    "pixart-sigma": PublicDenoiser(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        _PIXART,
        {"caption_channels": 4096, "use_additional_conditions": False},
    ),
    "dit-xl-2": PublicDenoiser("facebook/DiT-XL-2-256", "DiTTransformer2DModel", {"out_channels": 8}),
    "stable-diffusion-3-medium": PublicDenoiser(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        _SD3,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "stable-diffusion-3.5-medium": PublicDenoiser(
        "stabilityai/stable-diffusion-3.5-medium",
        _SD3,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384}
        | {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
    ),
    "stable-diffusion-3.5-large": PublicDenoiser(
        "stabilityai/stable-diffusion-3.5-large",
        _SD3,
        {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
        | {"qk_norm": "rms_norm"},
    ),
    "flux.1-dev": PublicDenoiser("black-forest-labs/FLUX.1-dev", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux.1-schnell": PublicDenoiser("black-forest-labs/FLUX.1-schnell", "FluxTransformer2DModel"),
    "flux.2-dev": PublicDenoiser("black-forest-labs/FLUX.2-dev", "Flux2Transformer2DModel"),
    "chroma1-hd": PublicDenoiser("lodestones/Chroma1-HD", "ChromaTransformer2DModel"),
    "qwen-image": PublicDenoiser("Qwen/Qwen-Image", "QwenImageTransformer2DModel"),
    "sana-1.6b": PublicDenoiser("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "SanaTransformer2DModel"),
    "z-image": PublicDenoiser("Tongyi-MAI/Z-Image-Turbo", "ZImageTransformer2DModel"),
    "wan2.1-1.3b": PublicDenoiser(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", _WAN, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    ),
    "wan2.1-14b": PublicDenoiser("Wan-AI/Wan2.1-T2V-14B-Diffusers", _WAN),
    "wan2.2-ti2v-5b": PublicDenoiser(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        _WAN,
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        per_token=True,
    ),
    "ltx-video": PublicDenoiser("Lightricks/LTX-Video", "LTXVideoTransformer3DModel"),
    "cogvideox-2b": PublicDenoiser("THUDM/CogVideoX-2b", _COGVIDEOX),
    "cogvideox-5b": PublicDenoiser(
        "THUDM/CogVideoX-5b",
        _COGVIDEOX,
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    ),
    "hunyuan-video": PublicDenoiser("hunyuanvideo-community/HunyuanVideo", "HunyuanVideoTransformer3DModel"),
    "minimax-h3": PublicDenoiser("MiniMaxAI/MiniMax-H3", "MiniMaxH3Transformer3DModel"),
}
"""Name to public model."""
