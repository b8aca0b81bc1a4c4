"""The few facts that differ between diffusers families: names of parts, of arguments, and how latents become pictures.

Knows pipeline objects by their signatures. Must not know jobs, threads, or how a denoiser runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from jobs.errors import JobFailed

DENOISER_PARTS = ("unet", "transformer")
"""Names under which a pipeline keeps its denoiser."""

UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Parts that making a picture of a text does not need; left out, as diffusers allows."""

OPTION_DEFAULTS = {"requires_safety_checker": False}
"""Constructor arguments that we decide whatever the folder says."""

SHARED_ARGUMENTS = frozenset({"img_ids", "txt_ids"})
"""Tensor arguments of denoisers that have no row dimension, even where their length happens to equal the batch's."""

ROW_LISTS = frozenset({"img_shapes", "txt_seq_lens"})
"""List arguments of denoisers with one entry per row."""

FIXED_CALL_ARGUMENTS: Mapping[str, Any] = {
    "use_resolution_binning": False,  # the size that was asked for, not the nearest of a table
    "clean_caption": False,  # the prompt as it is; cleaning needs packages that we do not carry
    "output_type": "pt",
    "return_dict": False,
}


class UnsupportedModel(JobFailed):
    """A folder or pipeline that cannot be served, or not with these arguments; the message says why."""

    code = "unsupported_model"


def denoiser_part(index: Mapping[str, Any]) -> str:
    """Which of a model_index.json's entries is the denoiser.

    Raises:
        UnsupportedModel: none, or more than one.
    """
    found = [part for part in DENOISER_PARTS if isinstance(index.get(part), list) and index[part][0]]
    if len(found) != 1:
        expected = " or ".join(DENOISER_PARTS)
        raise UnsupportedModel(f"model_index.json must have one of {expected}; it has {found or 'none'}")
    return found[0]


def call_arguments(
    pipeline: Any, *, prompt: str, negative_prompt: str, width: int, height: int, steps: int, guidance: float, n: int
) -> dict[str, Any]:
    """The arguments of `pipeline(...)` that make n pictures of a prompt.

    Raises:
        UnsupportedModel: the pipeline cannot do what is asked, for example take a negative prompt.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    wanted: dict[str, Any] = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "num_images_per_prompt": n,
    }
    missing = [name for name in wanted if name not in known]
    if missing:
        name = type(pipeline).__name__
        raise UnsupportedModel(f"{name} takes no {', '.join(missing)}: it does not make pictures from text")
    if negative_prompt:
        if "negative_prompt" not in known or "true_cfg_scale" in known:
            raise UnsupportedModel(f"{type(pipeline).__name__} takes no negative prompt; leave negative_prompt empty")
        wanted["negative_prompt"] = negative_prompt
    return wanted | {name: value for name, value in FIXED_CALL_ARGUMENTS.items() if name in known}


def latents_to_vae(pipeline: Any, latents: Tensor, width: int, height: int) -> Tensor:
    """Latents in the pipeline's own layout and scale as the VAE's decoder takes them: [n, C, h, w].

    Raises:
        UnsupportedModel: no known layout.
    """
    config = pipeline.vae.config
    if hasattr(pipeline, "_unpack_latents"):
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    if latents.ndim != 4 or getattr(config, "scaling_factor", None) is None:
        name = type(pipeline).__name__
        raise UnsupportedModel(f"{name} keeps latents in a layout that previews do not know; ask for 0 previews")
    scaled: Tensor = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    return scaled


def tokenizers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer of a pipeline with the number of tokens that the pipeline cuts its prompts to."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    asked = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    found = []
    for name, part in sorted(pipeline.components.items()):
        if name.startswith("tokenizer") and part is not None:
            limit = int(part.model_max_length)
            is_clip = "CLIP" in type(part).__name__
            found.append((part, limit if asked is None or is_clip else int(asked)))
    return found
