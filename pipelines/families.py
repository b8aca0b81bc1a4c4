"""The few facts that differ between diffusers families: names of parts, of arguments, and how latents become pictures.

Knows pipeline objects by their signatures. Must not know jobs, threads, or how a denoiser runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jobs.errors import JobFailed

if TYPE_CHECKING:
    from quant.backends.call import Role

Subject = str | int | None
"""What a picture shows: the text of a prompt, the number of a class, or nothing that anybody could choose."""

DENOISER_PARTS = ("unet", "transformer")
"""Names under which a pipeline keeps its denoiser."""

SECOND_DENOISERS = ("transformer_2",)
"""Names of a second one, for a part of the steps; a pipeline that has it is not served."""

AUTOENCODER_PARTS = ("vae", "vqvae")
"""Names under which a pipeline keeps what decodes its latents; one that works on pixels has neither."""

UNUSED_PARTS = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
"""Parts that making a picture of a text does not need; left out, as diffusers allows."""

OPTION_DEFAULTS = {"requires_safety_checker": False}
"""Constructor arguments that we decide whatever the folder says."""

SHARED_ARGUMENTS = frozenset({"img_ids", "txt_ids"})
"""Tensor arguments of denoisers that have no row dimension, even where their length happens to equal the batch's."""

SHARED_TUPLES = frozenset({"image_rotary_emb"})
"""Arguments of denoisers that are a few tensors of one shape, without a row dimension."""

ROW_LISTS = frozenset({"img_shapes", "txt_seq_lens"})
"""List arguments of denoisers with one entry per row."""

COND_FIRST = frozenset({"DiTTransformer2DModel", "LuminaNextDiT2DModel", "OmniGenTransformer2DModel"})
"""Denoisers whose pipelines put the conditional half of a guided batch first; all others put it second."""

CLASS_COUNTS = ("num_embeds_ada_norm", "num_class_embeds")
"""Where a denoiser's config says how many classes it knows."""

NULL_CLASSES = {"DiTPipeline": 1000}
"""The number that a pipeline passes for "no class" under guidance, whatever its denoiser knows."""

FIXED_CALL_ARGUMENTS: Mapping[str, Any] = {
    "use_resolution_binning": False,  # the size that was asked for, not the nearest of a table
    "clean_caption": False,  # the prompt as it is; cleaning needs packages that we do not carry
    "output_type": "pt",
    "return_dict": False,
}

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("timestep", "timesteps", "t"), "time"),
    # further times of a few models; each moves in step with the main one
    **dict.fromkeys(("timestep_r", "r_timestep", "target_timestep", "clean_timestep", "audio_timestep"), "time"),
    **dict.fromkeys(
        ("guidance", "class_labels", "timestep_cond", "additional_t_cond", "style", "fps", "ofs"), "constant"
    ),
    **dict.fromkeys(("time_ids", "added_time_ids", "resolution", "aspect_ratio", "image_meta_size"), "constant"),
    **dict.fromkeys(("original_size", "target_size", "crop_coords"), "constant"),
    **dict.fromkeys(("pooled_projections", "pooled_embeds", "text_embeds", "global_hidden_states"), "pooled"),
    "added_cond_kwargs.image_embeds": "pooled",
    **dict.fromkeys(("encoder_attention_mask", "encoder_attention_mask_2", "encoder_mask"), "text"),
    **dict.fromkeys(("attention_mask", "text_embedding_mask", "text_embedding_mask_t5"), "text"),
    **dict.fromkeys(("cap_feats", "text_bth", "text_lens", "txt_ids", "audio_encoder_attention_mask"), "text"),
    "audio_encoder_hidden_states": "text",
}
"""What the tensor arguments of diffusers' denoisers are, by dotted name or its last part; see `role_of`."""


class UnsupportedModel(JobFailed):
    """A folder or pipeline that cannot be served, or not with these arguments; the message says why."""

    code = "unsupported_model"


def role_of(name: str) -> Role:
    """What a denoiser's tensor argument of a dotted name is; "sample" is also what nothing is known of.

    Text is told from samples by name only, which is safe: neither may reach a module that depends on time alone.
    """
    last = name.rpartition(".")[2]
    found = ROLES.get(name) or ROLES.get(last)
    if found is None and last.startswith("encoder_hidden_states"):
        return "text"
    return found or "sample"


def denoiser_part(index: Mapping[str, Any]) -> str:
    """Which of a model_index.json's entries is the denoiser.

    Raises:
        UnsupportedModel: none, or more than one.
    """
    candidates = (*DENOISER_PARTS, *SECOND_DENOISERS)
    found = [part for part in candidates if isinstance(index.get(part), list) and index[part][0]]
    if len(found) != 1 or found[0] in SECOND_DENOISERS:
        expected = " or ".join(DENOISER_PARTS)
        raise UnsupportedModel(f"model_index.json must have one of {expected}; it has {found or 'none'}")
    return found[0]


def autoencoder(pipeline: Any) -> str | None:
    """The name of the part that decodes a pipeline's latents; None where its latents are pixels."""
    return next((part for part in AUTOENCODER_PARTS if getattr(pipeline, part, None) is not None), None)


def class_count(config: Mapping[str, Any]) -> int | None:
    """How many classes a denoiser knows by its config; None where it says nothing of classes."""
    counts = (config.get(name) for name in CLASS_COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def call_arguments(
    pipeline: Any,
    *,
    prompt: Subject | tuple[Subject, ...],
    negative_prompt: str,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    n: int,
    frames: int | None = None,
    fps: int | None = None,
) -> dict[str, Any]:
    """The arguments of `pipeline(...)` that make n pictures: all of one subject, or each of its own of a tuple of n.

    With `frames` they are videos of so many; `fps` is told to the few pipelines whose models look at it.

    Raises:
        UnsupportedModel: the pipeline cannot do what is asked, for example take a negative prompt or another size.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    wanted = {"num_inference_steps": steps, **_subject_arguments(pipeline, known, prompt, n)}
    wanted |= _size_arguments(pipeline, known, width, height)
    wanted |= _frame_arguments(pipeline, known, frames, fps)
    wanted |= _guidance_arguments(pipeline, known, guidance)
    if negative_prompt:
        if "negative_prompt" not in known or "true_cfg_scale" in known:
            raise UnsupportedModel(f"{type(pipeline).__name__} takes no negative prompt; leave negative_prompt empty")
        wanted["negative_prompt"] = negative_prompt
    wanted |= {name: value for name, value in FIXED_CALL_ARGUMENTS.items() if name in known}
    _require_complete(pipeline, known, wanted)
    return wanted


def _subject_arguments(
    pipeline: Any, known: Mapping[str, Any], prompt: Subject | tuple[Subject, ...], n: int
) -> dict[str, Any]:
    name = type(pipeline).__name__
    subjects = prompt if isinstance(prompt, tuple) else (prompt,) * n
    if len(subjects) != n:
        raise ValueError(f"{n} pictures need as many subjects, not {len(subjects)}")
    if all(isinstance(subject, str) for subject in subjects):
        if "prompt" not in known:
            raise UnsupportedModel(f"{name} takes no prompt: it does not make pictures from text")
        if isinstance(prompt, tuple) or "num_images_per_prompt" not in known:
            counts = ("num_images_per_prompt", "num_videos_per_prompt")
            told: dict[str, Any] = {count: 1 for count in counts if count in known}
            return {"prompt": list(subjects)} | told
        return {"prompt": prompt, "num_images_per_prompt": n}
    counted = {"batch_size": n} if "batch_size" in known else {}
    if all(isinstance(subject, int) for subject in subjects):
        if "class_labels" not in known:
            raise UnsupportedModel(f"{name} takes no class: it does not make pictures of classes")
        return {"class_labels": list(subjects), **counted}
    if any(subject is not None for subject in subjects):
        raise ValueError("the subjects of one batch must be of one kind: prompts, classes, or nothing")
    if not counted:
        raise UnsupportedModel(f"{name} must be told what to show: it has no argument batch_size alone")
    return counted


def _size_arguments(pipeline: Any, known: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    if "width" in known and "height" in known:
        return {"width": width, "height": height}
    own = own_size(pipeline)
    if own != (width, height):
        sizes = f"{own[0]}x{own[1]} only; {width}x{height} were asked for"
        raise UnsupportedModel(f"{type(pipeline).__name__} takes no size: this model makes pictures of {sizes}")
    return {}


def _frame_arguments(pipeline: Any, known: Mapping[str, Any], frames: int | None, fps: int | None) -> dict[str, Any]:
    name, makes_videos = type(pipeline).__name__, "num_frames" in known
    if frames is None:
        if makes_videos:
            raise UnsupportedModel(f"{name} makes videos, and no number of frames was asked for")
        return {}
    if not makes_videos:
        raise UnsupportedModel(f"{name} makes pictures; a video of {frames} frames was asked for")
    grain = frames_multiple_of(pipeline)
    if (frames - 1) % grain:
        below = frames - (frames - 1) % grain
        counts = f"{below} or {below + grain}"
        raise UnsupportedModel(f"{name} makes 1 + a multiple of {grain} frames, not {frames}; ask for {counts}")
    told = {"num_frames": frames}
    if fps is not None and "frame_rate" in known:
        told["frame_rate"] = fps
    longest = _text_length(pipeline)
    if longest is not None and "max_sequence_length" in known:
        told["max_sequence_length"] = longest
    return told


def frames_multiple_of(pipeline: Any) -> int:
    """k, where a pipeline makes videos of 1 + a multiple of k frames: its autoencoder's compression of time."""
    names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    return next((int(getattr(pipeline, name)) for name in names if getattr(pipeline, name, None)), 1)


def _text_length(pipeline: Any) -> int | None:
    """The one number of text tokens that a denoiser takes, where it says so; a pipeline's default may be another's."""
    config = getattr(getattr(pipeline, "transformer", None), "config", {})
    return config.get("max_text_seq_length")


def own_size(pipeline: Any) -> tuple[int, int]:
    """(width, height) in pixels of what a pipeline without size arguments makes: by its denoiser and autoencoder.

    Raises:
        UnsupportedModel: the denoiser's config does not say.
    """
    config = next(
        getattr(pipeline, part).config for part in DENOISER_PARTS if getattr(pipeline, part, None) is not None
    )
    sample = config.get("sample_size")
    sides = (sample, sample) if isinstance(sample, int) else tuple(sample or ())
    if len(sides) != 2:
        raise UnsupportedModel(f"{type(pipeline).__name__} takes no size, and its denoiser says none (sample_size)")
    part = autoencoder(pipeline)
    scale = 1 if part is None else 2 ** (len(getattr(pipeline, part).config.block_out_channels) - 1)
    return sides[1] * scale, sides[0] * scale


def _guidance_arguments(pipeline: Any, known: Mapping[str, Any], guidance: float) -> dict[str, Any]:
    name = type(pipeline).__name__
    if "guidance_scale" not in known:
        if guidance != 1.0:
            raise UnsupportedModel(f"{name} takes no guidance_scale; it must be 1, not {guidance:g}")
        return {}
    null = NULL_CLASSES.get(name)
    classes = None if null is None else class_count(pipeline.transformer.config)
    if guidance > 1 and null != classes:
        reason = f"{name} takes class {null} for none, and this model has {classes} classes"
        raise UnsupportedModel(f"{reason}; use guidance 1 (defaults in halftone.json)")
    return {"guidance_scale": guidance}


def _require_complete(pipeline: Any, known: Mapping[str, inspect.Parameter], wanted: Mapping[str, Any]) -> None:
    name = type(pipeline).__name__
    if unknown := [argument for argument in wanted if argument not in known]:
        raise UnsupportedModel(f"{name} takes no {', '.join(unknown)}: it does not make pictures as we ask for them")
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [key for key, one in known.items() if key != "self" and one.kind in plain and one.default is one.empty]
    if lacking := [argument for argument in needed if argument not in wanted]:
        raise UnsupportedModel(f"{name} also needs {', '.join(lacking)}, which we cannot give it")


def as_pictures(made: Any) -> Tensor:
    """What a pipeline made: pictures [n, C, H, W] or videos [n, F, C, H, W], float in 0..1 on the CPU.

    A few make arrays with channels last only.
    """
    if isinstance(made, np.ndarray):
        made = torch.from_numpy(made).movedim(-1, -3)
    pictures: Tensor = made.float().cpu()
    return pictures


def tokenizers(pipeline: Any) -> list[tuple[Any, int]]:
    """Each tokenizer of a pipeline with the number of tokens that the pipeline cuts its prompts to."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    asked = _text_length(pipeline) or (
        parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    )
    found = []
    for name, part in sorted(pipeline.components.items()):
        if name.startswith("tokenizer") and part is not None:
            limit = int(part.model_max_length)
            is_clip = "CLIP" in type(part).__name__
            found.append((part, limit if asked is None or is_clip else int(asked)))
    return found
