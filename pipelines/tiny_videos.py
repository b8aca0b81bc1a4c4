"""Tiny pipelines that make videos, with random weights, one per family, as folders that any diffusers can load.

Must not be used to make videos for people: they are noise.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines.tiny import (
    CLIP_WIDTH,
    T5_WIDTH,
    clip_config,
    clip_tokenizer,
    open_gates,
    save_random,
    t5_encoder,
    t5_tokenizer,
)

LATENTS = 4
"""Channels of every tiny latent."""


def save_tiny_video(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a tiny random model of a family (a key of `VIDEO_FAMILIES`) to a folder in diffusers layout.

    Raises:
        KeyError: no such family; the message lists the known ones.
    """
    if family not in VIDEO_FAMILIES:
        raise KeyError(f"no tiny video model of family {family!r}; there are {', '.join(VIDEO_FAMILIES)}")

    def make() -> Any:
        pipeline = VIDEO_FAMILIES[family]()
        open_gates(pipeline.transformer)
        return pipeline

    return save_random(make, folder, seed=seed)


def _wan(**options: Any) -> Any:
    """Wan 2.1; latents are a quarter of the frames and of each side."""
    tokenizer = t5_tokenizer()
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=T5_WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.UMT5EncoderModel(config).eval(),
        vae=diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=LATENTS,
            dim_mult=[1, 1, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.1] * LATENTS,
            latents_std=[1.5] * LATENTS,
            scale_factor_temporal=4,
            scale_factor_spatial=4,
        ).eval(),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENTS,
            out_channels=LATENTS,
            text_dim=T5_WIDTH,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        ).eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **options,
    )


def _wan_per_token() -> Any:
    """Wan 2.2's small model: a timestep for every token."""
    return _wan(expand_timesteps=True)


def _ltx() -> Any:
    """LTX: latents are an eighth of the frames; its pipeline asks for sides that are multiples of 32."""
    return diffusers.LTXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        ).eval(),
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=T5_WIDTH,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _cogvideox(*, rotary: bool = False) -> Any:
    """CogVideoX: frames before channels in its latents."""
    return diffusers.CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=LATENTS,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=LATENTS,
            out_channels=LATENTS,
            time_embed_dim=8,
            text_embed_dim=T5_WIDTH,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=24,
            use_rotary_positional_embeddings=rotary,
        ).eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
        ),
    )


def _cogvideox_rotary() -> Any:
    """CogVideoX-5b: positions as rotations, told by the pipeline as a pair of tensors."""
    return _cogvideox(rotary=True)


def _hunyuan_video() -> Any:
    """HunyuanVideo: guidance is an input of the model."""
    tokenizer = llama_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
    )
    clip = clip_tokenizer(longest=77)
    return diffusers.HunyuanVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.LlamaModel(config).eval(),
        tokenizer_2=clip,
        text_encoder_2=transformers.CLIPTextModel(clip_config(clip, longest=77)).eval(),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=LATENTS,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ).eval(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=16,
            pooled_projection_dim=CLIP_WIDTH,
            rope_axes_dim=(4, 6, 6),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def llama_tokenizer() -> Any:
    """A fast tokenizer with a token for every word of HunyuanVideo's template, and single letters for all else."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    words = {word for word, _ in split.pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])}
    letters = [*string.ascii_letters, *string.digits]
    tokens = ["<pad>", "<unk>", *sorted(words | set(letters)), *(f"##{letter}" for letter in letters)]
    plain = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="<unk>"))  # noqa: S106
    plain.pre_tokenizer = split
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")  # noqa: S106


VIDEO_FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": _wan,
    "wan-per-token": _wan_per_token,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "cogvideox-rotary": _cogvideox_rotary,
    "hunyuan-video": _hunyuan_video,
}
"""Name of a family to the function that builds its tiny pipeline."""
