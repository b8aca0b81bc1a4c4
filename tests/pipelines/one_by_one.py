"""A tiny model whose pipeline calls its denoiser once per branch, as a folder; and plans by hand for any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import transformers

from pipelines.tiny import save_random, t5_tokenizer, vae
from quant.guidance.plan import GuidancePlan, GuidanceStep

WIDTH = 32


def save_cogview(folder: Path) -> Path:
    """Writes a tiny random CogView4 to a folder in diffusers layout."""
    return save_random(_cogview, folder)


def _cogview() -> Any:
    tokenizer = t5_tokenizer()
    config = transformers.GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
    )
    pipeline = diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config).eval(),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False),
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=16,
            rope_axes_dim=(8, 8),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )
    pipeline.transformer.patch_embed.text_proj.weight.data *= 30  # random weights hardly look at texts
    return pipeline


def step(letter: str, gain: float = 1.0, *earlier: float, pattern: int = 0) -> GuidanceStep:
    """A step that runs both branches (B) or one (R), with weights of differences."""
    return GuidanceStep(unconditional="run" if letter == "B" else "reuse", gain=gain, earlier=earlier, pattern=pattern)


def by_hand(timesteps: Sequence[float], steps: Sequence[GuidanceStep], **changes: object) -> GuidancePlan:
    """A plan of given steps that serves guidance 1.5 to 6."""
    fields: dict[str, object] = {
        "timesteps": tuple(timesteps),
        "steps": tuple(steps),
        "guidance": (1.5, 6.0),
        "calibrated_guidance": 3.0,
        "saving": 0.25,
    }
    return GuidancePlan.model_validate(fields | changes)
