"""How a comparison is decided from what a user asks for: profiles, prompts, seeds and bounds. Knows no HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from jobs.comparing import MAX_PICTURES, MAX_PROFILES, CompareParameters, CompareRequest
from jobs.errors import InvalidRequest
from jobs.profile import FLOAT, ModelCard
from jobs.request import MAX_SEED, AnyRequest, ImageParameters, Notice, VideoParameters, VideoRequest


def profiles_of(card: ModelCard, parameters: CompareParameters) -> tuple[str, ...]:
    """The profiles to hold against float: those named, or all.

    Raises:
        InvalidRequest: float is named, there are none, or too many.
    """
    if parameters.profiles is not None and FLOAT in parameters.profiles:
        raise InvalidRequest(f"profiles: {FLOAT!r} is what the others are held against; leave it out", param="profiles")
    names = parameters.profiles or tuple(one.name for one in card.profiles if one.name != FLOAT)
    if not names:
        raise InvalidRequest(
            f"profiles: {card.id} has none but {FLOAT!r}; make one by `halftone quantize`", param="profiles"
        )
    if len(names) > MAX_PROFILES:
        raise InvalidRequest(
            f"profiles: {card.id} has {len(names)} and at most {MAX_PROFILES} are compared at once; name some",
            param="profiles",
        )
    return names


def prompts_of(parameters: CompareParameters) -> tuple[str, ...]:
    """All prompts."""
    return parameters.prompts or ((parameters.prompt,) if parameters.prompt is not None else ())


def picture_of(card: ModelCard, parameters: CompareParameters, prompt: str) -> ImageParameters | VideoParameters:
    """One of float's pictures or videos, as a user would ask for it.

    Raises:
        InvalidRequest: the model makes pictures, and frames were asked for.
    """
    names = {"negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "priority"}
    facts = parameters.model_dump(include=names) | {"prompt": prompt, "model": card.id, "profile": FLOAT}
    if card.kind == "video":
        return VideoParameters(**facts, num_frames=parameters.num_frames, fps=parameters.fps)
    for name in ("num_frames", "fps"):
        if getattr(parameters, name) is not None:
            raise InvalidRequest(f"{name}: {card.id} makes pictures, which have no frames; leave it out", param=name)
    return ImageParameters(**facts)


def decide(parameters: CompareParameters, profiles: Sequence[str], pictures: Sequence[AnyRequest]) -> CompareRequest:
    """The decided request; `pictures` are float's, decided, one of each prompt.

    Raises:
        InvalidRequest: these are more pictures than one comparison draws.
    """
    first = pictures[0]
    single = secrets.randbelow(MAX_SEED + 1) if parameters.seed is None else parameters.seed
    moving = first if isinstance(first, VideoRequest) else None
    names = ("model", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale")
    notices: dict[str, Notice] = {notice.message: notice for one in pictures for notice in one.notices}
    request = CompareRequest(
        **{name: getattr(first, name) for name in names},
        profiles=tuple(profiles),
        prompts=prompts_of(parameters),
        seeds=parameters.seeds or (single,),
        num_frames=None if moving is None else moving.num_frames,
        fps=None if moving is None else moving.fps,
        thresholds=parameters.thresholds,
        temporal=parameters.temporal,
        priority=parameters.priority,
        notices=tuple(notices.values()),
    )
    if request.pictures > MAX_PICTURES:
        counts = (
            f"{len(request.prompts)} prompts x {len(request.seeds)} seeds x {1 + len(profiles)} profiles with float"
        )
        raise InvalidRequest(
            f"{counts} are {request.pictures} pictures; one comparison draws at most {MAX_PICTURES}. "
            "Ask for fewer prompts, seeds or profiles",
            param="prompts" if parameters.prompts else "profiles",
        )
    return request
