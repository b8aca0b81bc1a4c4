"""From what a user asks for to a decided request, by the model's card: what is left out is filled, the rest is held
against limits. Knows no workers, no costs and no HTTP.

Nothing is clamped or dropped silently: what a model cannot do is refused with its limit, and what may surprise
(a word the model never saw, a size it was not trained at) comes back as a notice in the answer.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass
from typing import Any, overload

from jobs.catalog import Catalog
from jobs.errors import InvalidRequest, UnknownProfile
from jobs.profile import FLOAT, ModelCard, Motion
from jobs.request import (
    MAX_SEED,
    AnyParameters,
    AnyRequest,
    CompareParameters,
    CompareRequest,
    ImageParameters,
    ImageRequest,
    Kind,
    Notice,
    Parameters,
    VideoParameters,
    VideoRequest,
)
from jobs.video_formats import unfit
from service import comparing

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_LOSSLESS = {"png": "lossless", "gif": "of 256 colours whatever the quality", "frames": "lossless"}
_MAKES = {"image": "pictures", "video": "videos"}
_ROUTES = {"image": "POST /v1/images/generations", "video": "POST /v1/videos"}


@dataclass(frozen=True)
class Resolver:
    """Decides requests. `default_models` by kind; `max_video_pixels` bounds pixels over all frames of a video."""

    catalog: Catalog
    default_models: dict[Kind, str]
    max_video_pixels: int

    @overload
    def __call__(self, parameters: ImageParameters) -> ImageRequest: ...
    @overload
    def __call__(self, parameters: VideoParameters) -> VideoRequest: ...
    @overload
    def __call__(self, parameters: CompareParameters) -> CompareRequest: ...
    @overload
    def __call__(self, parameters: AnyParameters) -> AnyRequest: ...

    def __call__(self, parameters: AnyParameters) -> AnyRequest:
        """The decided request. Raises UnknownModel, UnknownProfile, InvalidRequest."""
        if isinstance(parameters, CompareParameters):
            return self._comparison(parameters)
        card = self.catalog.card(parameters.model or self.default_models[parameters.kind])
        motion = card.motion
        if isinstance(parameters, ImageParameters):
            if motion is not None:
                raise _wrong_kind(card, parameters.kind)
            return ImageRequest(**self._common(card, parameters), n=parameters.n)
        if motion is None:
            raise _wrong_kind(card, parameters.kind)
        common = self._common(card, parameters)
        frames, fps = _frames(card, motion, parameters)
        request = VideoRequest(**common, num_frames=frames, fps=fps)
        self._check_pixels(request)
        _check_format(request)
        return request

    def _comparison(self, parameters: CompareParameters) -> CompareRequest:
        """Every picture of it must be one that float may be asked for; the rest is the comparison's own."""
        card = self.catalog.card(parameters.model or self.default_models["image"])
        profiles = comparing.profiles_of(card, parameters)
        if unknown := [name for name in profiles if card.profile(name) is None]:
            known = ", ".join(one.name for one in card.profiles)
            raise UnknownProfile(
                f"profiles: {card.id} has no profile {', '.join(map(repr, unknown))}; it has: {known}", param="profiles"
            )
        each = [self(comparing.picture_of(card, parameters, prompt)) for prompt in comparing.prompts_of(parameters)]
        return comparing.decide(parameters, profiles, each)

    def _common(self, card: ModelCard, parameters: ImageParameters | VideoParameters) -> dict[str, Any]:
        """The fields that all kinds have, decided."""
        profile = self.catalog.profile(card.id, parameters.profile or FLOAT)
        width = parameters.width or card.defaults.width
        height = parameters.height or card.defaults.height
        _check_size(card, width, height)
        steps = parameters.num_inference_steps or card.defaults.num_inference_steps
        if steps > card.limits.max_steps:
            raise InvalidRequest(
                f"num_inference_steps: {card.id} takes at most {card.limits.max_steps}; got {steps}",
                param="num_inference_steps",
            )
        _check_compression(parameters)
        guidance = parameters.guidance_scale
        kept = {"kind", "prompt", "negative_prompt", "output_format", "output_compression", "previews", "priority"}
        return parameters.model_dump(include=kept) | {
            "model": card.id,
            "profile": profile.name,
            "width": width,
            "height": height,
            "num_inference_steps": steps,
            "guidance_scale": card.defaults.guidance_scale if guidance is None else guidance,
            "seed": secrets.randbelow(MAX_SEED + 1) if parameters.seed is None else parameters.seed,
            "notices": _notices(card, parameters, width, height),
        }

    def _check_pixels(self, request: VideoRequest) -> None:
        pixels = request.width * request.height * request.num_frames
        if pixels > self.max_video_pixels:
            raise InvalidRequest(
                f"num_frames: {request.num_frames} frames of {request.width}x{request.height} are {pixels} pixels; "
                f"at most {self.max_video_pixels} are made in one video. Ask for fewer or smaller frames",
                param="num_frames",
            )


def _wrong_kind(card: ModelCard, kind: Kind) -> InvalidRequest:
    return InvalidRequest(
        f"model: {card.id} makes {_MAKES[card.kind]}, not {_MAKES[kind]}; ask {_ROUTES[card.kind]}, "
        f'or POST /v1/jobs with "kind": "{card.kind}"',
        param="model",
    )


def _check_format(request: VideoRequest) -> None:
    fault = unfit(request.output_format, request.width, request.height, request.fps)
    if fault is not None:
        raise InvalidRequest(f"{fault[0]}: {fault[1]}", param=fault[0])


def _check_compression(parameters: ImageParameters | VideoParameters) -> None:
    fault = _LOSSLESS.get(parameters.output_format)
    if parameters.output_compression is not None and fault is not None:
        others = "webp or jpeg" if isinstance(parameters, ImageParameters) else "mp4, webm or webp"
        raise InvalidRequest(
            f"output_compression: {parameters.output_format} is {fault} and takes none; "
            f"leave it out, or choose {others}",
            param="output_compression",
        )


def _check_size(card: ModelCard, width: int, height: int) -> None:
    limits = card.limits
    for name, side in (("width", width), ("height", height)):
        if not limits.min_side <= side <= limits.max_side:
            raise InvalidRequest(
                f"{name}: {card.id} makes {limits.min_side} to {limits.max_side} pixels; got {side}", param=name
            )
        if side % limits.multiple_of:
            raise InvalidRequest(
                f"{name}: {card.id} needs a multiple of {limits.multiple_of} pixels; got {side}", param=name
            )
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"width, height: {card.id} makes at most {limits.max_pixels} pixels; {width}x{height} are {width * height}",
            param="width",
        )


def _frames(card: ModelCard, motion: Motion, parameters: VideoParameters) -> tuple[int, int]:
    """(frames, frames a second). Seconds are turned into the count nearest to seconds x fps that the model can make."""
    fps = parameters.fps or motion.fps
    frames, seconds = parameters.num_frames, parameters.seconds
    if frames is not None:
        _check_frames(card, motion, frames)
    if seconds is None:
        return frames or motion.num_frames, fps
    by_time = 1 + motion.grain * max(0, math.floor((seconds * fps - 1) / motion.grain + 0.5))
    if by_time > motion.most:
        raise InvalidRequest(
            f"seconds: {card.id} makes at most {motion.most} frames, which at {fps} fps are {motion.most / fps:.4g} "
            f"seconds; got {seconds:g}. Ask for fewer seconds or fewer fps",
            param="seconds",
        )
    if frames not in (None, by_time):
        raise InvalidRequest(
            f"seconds: {seconds:g} seconds at {fps} fps are {by_time} frames of {card.id}, "
            f"and num_frames says {frames}; leave one of them out",
            param="seconds",
        )
    return by_time, fps


def _check_frames(card: ModelCard, motion: Motion, frames: int) -> None:
    if frames <= motion.most and (frames - 1) % motion.grain == 0:
        return
    below = min(motion.most, frames - (frames - 1) % motion.grain)
    nearest = [count for count in (below, below + motion.grain) if count <= motion.most]
    rule = f"1 + a multiple of {motion.grain} frames" if motion.grain > 1 else "any number of frames"
    raise InvalidRequest(
        f"num_frames: {card.id} makes {rule}, at most {motion.most}; got {frames}. "
        f"Nearest: {' or '.join(map(str, nearest))}",
        param="num_frames",
    )


def _notices(card: ModelCard, parameters: Parameters, width: int, height: int) -> tuple[Notice, ...]:
    notices: list[Notice] = []
    unknown = _unknown_words(card, f"{parameters.prompt} {parameters.negative_prompt}")
    if unknown:
        listed = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        message = f"{card.id} does not know these words: {listed}. Its vocabulary is at /v1/models/{card.id}"
        notices.append(Notice(code="unknown_words", message=message))
    if card.trained_sizes and (width, height) not in card.trained_sizes:
        sizes = ", ".join(f"{w}x{h}" for w, h in card.trained_sizes)
        message = f"{card.id} was trained at {sizes}; {width}x{height} may look worse"
        notices.append(Notice(code="untrained_size", message=message))
    return tuple(notices)


def _unknown_words(card: ModelCard, text: str) -> list[str]:
    if card.vocabulary is None:
        return []
    known = {word.casefold() for word in card.vocabulary}
    words = dict.fromkeys(word.casefold()[:40] for word in _WORD.findall(text))
    return [word for word in words if word not in known]
