"""OpenAI's image request with our fields beside it, and the step to `ImageParameters`. Knows no HTTP and no model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from jobs.errors import InvalidRequest
from jobs.promise import Bytes, Deadline, Quality
from jobs.request import (
    STRICT,
    Count,
    Guidance,
    ImageParameters,
    ModelId,
    OutputFormat,
    Priority,
    ProfileName,
    Prompt,
    Seed,
    Steps,
    Text,
)

_SIZE = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


def _check_size(size: str) -> str:
    match = _SIZE.fullmatch(size)
    if size != "auto" and match is None:
        raise ValueError("must be 'auto' or WIDTHxHEIGHT in pixels, like '512x512'")
    if match is not None and not all(8 <= int(side) <= 4096 for side in match.groups()):
        raise ValueError("sides must be 8 to 4096 pixels")
    return size


@contextmanager
def told_as_size(said: bool) -> Iterator[None]:
    """Tells faults of width and height as faults of `size`, where that is what was said."""
    try:
        yield
    except InvalidRequest as fault:
        if said and fault.param in ("width", "height"):
            fault.message, fault.param = f"size: {fault.message}", "size"
        raise


def _only(*allowed: str, instead: str) -> BeforeValidator:
    """Accepts the values of a field of OpenAI's that ask for nothing we lack, and says what to use for the others."""

    def check(value: Any) -> Any:
        if value is not None and not isinstance(value, dict | BaseModel) and value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(repr, allowed))} here; {instead}")
        return value

    return BeforeValidator(check)


Size = Annotated[str, Field(max_length=16), AfterValidator(_check_size)]
_QUALITY = _only("auto", "standard", instead='or an object {"min_psnr_db": 40}; choose quality by it or by `profile`')
_BACKGROUND = _only("auto", "opaque", instead="pictures have no transparent parts")
_MODERATION = _only("auto", "low", instead="there is no content filter")

DOCUMENTED = {
    "simple": {"summary": "A picture", "value": {"prompt": "a red circle left of a blue square"}},
    "full": {
        "summary": "Everything chosen",
        "value": {
            "prompt": "a large green star on a black background",
            "model": "shapes-unet",
            "profile": "w8a8",
            "n": 2,
            "size": "64x64",
            "num_inference_steps": 25,
            "guidance_scale": 4.0,
            "seed": 7,
            "priority": "high",
            "response_format": "b64_json",
            "output_format": "webp",
            "output_compression": 90,
        },
    },
}
"""Examples for the API's documentation; a test sends each of them."""


class ImagesBody(BaseModel):
    """A request to POST /v1/images/generations. `null` is the same as leaving a field out."""

    model_config = STRICT

    prompt: Prompt
    model: ModelId | None = Field(None, description="Model id from /v1/models; the service's default when left out.")
    n: Count | None = Field(None, description="Pictures to make (default 1). Picture i uses seed + i.")
    size: Size | None = Field(None, description="'auto' (the model's default) or WIDTHxHEIGHT.")
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="url (default) or b64_json. A stream always carries b64_json."
    )
    output_format: OutputFormat | None = Field(None, description="png (default), webp or jpeg.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of jpeg and webp, 0 to 100 (default 90); refused for png, which is lossless."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="Preview pictures to send on the way; only with stream."
    )
    user: Annotated[str, Field(max_length=256)] | None = Field(None, description="Accepted and not used.")
    safety_identifier: Annotated[str, Field(max_length=256)] | None = Field(None, description="Accepted and not used.")
    quality: Annotated[Literal["auto", "standard"] | Quality | None, _QUALITY] = Field(
        None, description="'auto' and 'standard' ask for nothing; an object asks how near to float, with profile auto."
    )
    background: Annotated[Literal["auto", "opaque"] | None, _BACKGROUND] = None
    moderation: Annotated[Literal["auto", "low"] | None, _MODERATION] = None
    profile: ProfileName | None = Field(
        None, description="Quantization profile from /v1/profiles, or `auto` with a promise; default `float`."
    )
    deadline_seconds: Deadline | None = Field(None, description="Device seconds it may be expected to take; with auto.")
    max_memory_bytes: Bytes | None = Field(None, description="Of the denoiser's weights as stored; with auto.")
    negative_prompt: Text | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    seed: Seed | None = Field(None, description="Drawn at random and returned when left out.")
    priority: Annotated[Priority, Field(strict=False)] | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.stream)

    @property
    def inline(self) -> bool:
        """Whether pictures come in the answer instead of by link."""
        return self.response_format == "b64_json"

    def parameters(self) -> ImageParameters:
        """What is asked for, in the words of `jobs`; raises InvalidRequest for fields that contradict each other."""
        if self.partial_images and not self.stream:
            raise InvalidRequest("partial_images needs stream: true", param="partial_images")
        own = self.model_dump(
            include={
                "prompt", "model", "profile", "negative_prompt", "num_inference_steps", "guidance_scale",
                "seed", "n", "output_format", "output_compression", "priority", "deadline_seconds", "max_memory_bytes",
            },
            exclude_none=True,
        )  # fmt: skip
        if isinstance(self.quality, Quality):
            own["quality"] = self.quality
        if self.size not in (None, "auto"):
            own["width"], own["height"] = map(int, str(self.size).split("x"))
        try:
            return ImageParameters(**own, previews=self.partial_images or 0)
        except ValidationError as error:
            raise InvalidRequest(f"the request contradicts itself: {error.errors()[0]['msg']}") from error
