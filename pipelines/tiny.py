"""Tiny models with random weights, one per family, as folders that any diffusers can load: what tests run on.

Must not be used to make pictures for people: they are noise.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

CLIP_WIDTH = 32
T5_WIDTH = 64


def save_tiny(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a tiny random model of a family (a key of `FAMILIES`) to a folder in diffusers layout.

    Raises:
        KeyError: no such family; the message lists the known ones.
    """
    if family not in FAMILIES:
        raise KeyError(f"no tiny model of family {family!r}; there are {', '.join(FAMILIES)}")
    return save_random(FAMILIES[family], folder, seed=seed)


def save_random(make: Callable[[], Any], folder: Path, *, seed: int = 0) -> Path:
    """Writes the pipeline that `make` makes, its weights random by a seed, to a folder in diffusers layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = make()
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def open_gates(module: nn.Module) -> None:
    """Random numbers in place of parameters that are all zero: gates that would hide what they let through."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)


def clip_tokenizer(longest: int = 16) -> Any:
    """A CLIP tokenizer that knows single letters, digits and signs, `longest` tokens long."""
    letters = [*string.ascii_lowercase, *string.digits, ",", "."]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=longest)


def t5_tokenizer() -> Any:
    """A T5 tokenizer that knows single letters, 24 tokens long."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return transformers.T5Tokenizer(vocab=[(token, 0.0) for token in tokens], extra_ids=0, model_max_length=24)


def clip_config(tokenizer: Any, width: int = CLIP_WIDTH, longest: int = 16) -> Any:
    """The config of a CLIP text encoder for a tokenizer."""
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_encoder() -> Any:
    """A T5 encoder for `t5_tokenizer`."""
    tokenizer = t5_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, **options: Any) -> Any:
    """An autoencoder that halves pictures' sides."""
    blocks = 2
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=latent_channels,
        **options,
    ).eval()


def _unet(channels: int, cross_attention: int, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention,
        norm_num_groups=8,
        **options,
    ).eval()


def _stable_diffusion() -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(12),
        text_encoder=transformers.CLIPTextModel(clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=_unet(12, CLIP_WIDTH, attention_head_dim=8),
        scheduler=diffusers.DDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            beta_schedule="scaled_linear",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl() -> Any:
    tokenizer = clip_tokenizer()
    conditions = 6 * 8 + CLIP_WIDTH
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=transformers.CLIPTextModel(clip_config(tokenizer)).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=_unet(
            4,
            2 * CLIP_WIDTH,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=conditions,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=T5_WIDTH,
            in_channels=4,
            cross_attention_dim=32,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=False,
        ).eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _stable_diffusion_3() -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(tokenizer)).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * CLIP_WIDTH,
            out_channels=16,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> Any:
    tokenizer = clip_tokenizer()
    return diffusers.FluxPipeline(
        vae=vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=transformers.CLIPTextModel(clip_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-xl": _stable_diffusion_xl,
    "pixart-sigma": _pixart,
    "stable-diffusion-3": _stable_diffusion_3,
    "flux": _flux,
}
"""Name of a family to the function that builds its tiny pipeline."""
