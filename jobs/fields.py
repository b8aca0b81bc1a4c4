"""The fields that requests of every kind share: their types, bounds and bases. Knows no kind, HTTP, Redis or torch."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jobs.promise import Bytes, Choice, Deadline, Quality

MAX_SEED = 2**32 - 1
MAX_PROMPT_BYTES = 8000


class Priority(StrEnum):
    """Which of the three streams a job waits in."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def _clean_text(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the character U+0000")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"must be at most {MAX_PROMPT_BYTES} bytes of UTF-8; got {size}")
    return unicodedata.normalize("NFC", text)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=2000), AfterValidator(_clean_text)]
Prompt = Annotated[Text, Field(min_length=1), AfterValidator(_not_blank)]
ModelId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ProfileName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Side = Annotated[int, Field(ge=8, le=4096)]
Steps = Annotated[int, Field(ge=1, le=200)]
Guidance = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Frames = Annotated[int, Field(ge=1, le=100_000)]
"""How many frames; which of them a model can make, its card says."""
Fps = Annotated[int, Field(ge=1, le=60)]
Compression = Annotated[int, Field(ge=0, le=100)]
Previews = Annotated[int, Field(ge=0, le=3)]

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
"""Request bodies: unknown fields refused, no coercion (`true` is not a number, `"4"` is not 4)."""

DECIDED = ConfigDict(extra="forbid", frozen=True)
"""Decided requests, as they travel through Redis."""


class Parameters(BaseModel):
    """What a user may say of any generation; a field left out is filled from the model's defaults."""

    model_config = STRICT

    prompt: Prompt
    model: ModelId | None = Field(None, description="Model id from /v1/models; the service's default when left out.")
    profile: ProfileName | None = Field(
        None,
        description="Quantization profile; `auto` has one chosen that keeps `quality`, `deadline_seconds` and "
        "`max_memory_bytes`. When left out: `auto` if one of these is given, else `float`.",
    )
    quality: Quality | None = Field(None, description="How near to float; with profile auto.")
    deadline_seconds: Deadline | None = Field(None, description="Device seconds it may be expected to take; with auto.")
    max_memory_bytes: Bytes | None = Field(None, description="Of the denoiser's weights as stored; with auto.")
    negative_prompt: Text = ""
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    previews: Previews = Field(0, description="How many previews to send on the way.")
    # JSON knows no enums: the one field that must accept a plain string under strict mode.
    priority: Annotated[Priority, Field(strict=False)] = Priority.NORMAL


class Notice(BaseModel):
    """Something the user should know about an answer that is otherwise fine."""

    model_config = STRICT

    code: Literal[
        "unknown_words",
        "prompt_truncated",
        "untrained_size",
        "guidance_plan_unused",
        "guidance_plan_negative_prompt",
        "profile_chosen",
        "profile_replaced",
        "profile_failed",
    ]
    message: str


class JobRequest(BaseModel, ABC):
    """What a job runs, of whatever kind: every field decided. Travels through Redis as JSON. Only kinds are made."""

    model_config = DECIDED

    version: Literal[1] = 1
    kind: str
    model: ModelId
    profile: ProfileName
    priority: Priority = Priority.NORMAL
    notices: tuple[Notice, ...] = ()
    choice: Choice | None = Field(None, description="Why this profile, where it was chosen by promise.")

    @property
    def lane(self) -> str:
        """Which lane of the queue it waits in."""
        return "image"

    @property
    def needs(self) -> tuple[str, ...]:
        """Profiles that its worker must serve."""
        return (self.profile,)

    @property
    @abstractmethod
    def work(self) -> int:
        """Denoiser work in pixel-steps, guidance counted twice."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Denoiser calls, one for each step and branch: cost estimates are these, times what one takes by size."""


class GenerationRequest(JobRequest):
    """What a job runs that makes pictures or a video of one prompt."""

    prompt: Prompt
    negative_prompt: Text = ""
    width: Side
    height: Side
    num_inference_steps: Steps
    guidance_scale: Guidance
    seed: Seed
    output_compression: int | None = None
    previews: int = 0

    @property
    def passes(self) -> int:
        """Branches of classifier-free guidance that a step runs."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def calls(self) -> int:
        """Denoiser calls."""
        return self.num_inference_steps * self.passes

    @property
    def pixel_steps(self) -> int:
        """Pixels of one frame, times steps, times branches."""
        return self.width * self.height * self.num_inference_steps * self.passes

    @property
    def seeds(self) -> list[int]:
        """The seed of each thing that is made."""
        return [self.seed]
