"""What a user asks for and what a job runs, by kind: pictures, a video, a comparison. Each kind has both types.

Knows bounds, never HTTP, Redis or torch. A job's request is one of a union that its `kind` tells apart; the fields that
all share are in `jobs.fields` and can be had from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from jobs.comparing import CompareParameters, CompareRequest
from jobs.fields import (
    DECIDED,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    STRICT,
    Compression,
    Fps,
    Frames,
    GenerationRequest,
    Guidance,
    JobRequest,
    ModelId,
    Notice,
    Parameters,
    Previews,
    Priority,
    ProfileName,
    Prompt,
    Seed,
    Side,
    Steps,
    Text,
)

__all__ = [
    "DECIDED",
    "MAX_PROMPT_BYTES",
    "MAX_SEED",
    "PARAMETERS",
    "STRICT",
    "AnyParameters",
    "AnyRequest",
    "CompareParameters",
    "CompareRequest",
    "Compression",
    "Count",
    "Fps",
    "Frames",
    "GenerationRequest",
    "Guidance",
    "ImageParameters",
    "ImageRequest",
    "JobRequest",
    "Kind",
    "ModelId",
    "Notice",
    "OutputFormat",
    "Parameters",
    "Previews",
    "Priority",
    "ProfileName",
    "Prompt",
    "Seconds",
    "Seed",
    "Side",
    "Steps",
    "Text",
    "VideoFormat",
    "VideoParameters",
    "VideoRequest",
    "read_request",
]

Kind = Literal["image", "video"]
OutputFormat = Literal["png", "webp", "jpeg"]
VideoFormat = Literal["mp4", "webm", "webp", "gif", "frames"]

Count = Annotated[int, Field(ge=1, le=4)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ImageParameters(Parameters):
    """What a user asks for who wants pictures."""

    kind: Literal["image"] = "image"
    seed: Seed | None = Field(None, description="Drawn at random when left out. Picture i of n uses seed + i.")
    n: Count = 1
    output_format: OutputFormat = "png"
    output_compression: Compression | None = Field(
        None, description="Quality of jpeg and webp, 0 to 100 (default 90); refused for png, which is lossless."
    )


class VideoParameters(Parameters):
    """What a user asks for who wants a video."""

    kind: Literal["video"] = "video"
    seed: Seed | None = Field(None, description="Drawn at random when left out.")
    num_frames: Frames | None = Field(None, description="1 + a multiple of the model's `frames_multiple_of`.")
    fps: Fps | None = Field(None, description="Frames shown in a second; most models do not look at it.")
    seconds: Seconds | None = Field(
        None, description="Instead of num_frames: the count nearest to seconds x fps that the model can make."
    )
    output_format: VideoFormat = Field(
        "mp4", description="mp4 (H.264), webm (VP9), webp or gif (animated), or frames: a zip of PNG files."
    )
    output_compression: Compression | None = Field(
        None, description="Quality of mp4, webm and webp, 0 to 100; refused for gif and frames, which have none."
    )


class ImageRequest(GenerationRequest):
    """What a job runs that makes n pictures."""

    kind: Literal["image"] = "image"
    n: Count = 1
    output_format: OutputFormat = "png"

    @property
    def seeds(self) -> list[int]:
        """The seed of each of the n pictures."""
        return [(self.seed + i) % (MAX_SEED + 1) for i in range(self.n)]

    @property
    def work(self) -> int:
        """Denoiser work in pixel-steps of all pictures."""
        return self.pixel_steps * self.n


class VideoRequest(GenerationRequest):
    """What a job runs that makes one video."""

    kind: Literal["video"] = "video"
    num_frames: Frames
    fps: Fps
    output_format: VideoFormat = "mp4"

    @property
    def lane(self) -> str:
        """Videos wait apart."""
        return "video"

    @property
    def work(self) -> int:
        """Denoiser work in pixel-steps of all frames."""
        return self.pixel_steps * self.num_frames


AnyParameters = ImageParameters | VideoParameters | CompareParameters
PARAMETERS: Mapping[str, type[AnyParameters]] = {
    "image": ImageParameters,
    "video": VideoParameters,
    "compare": CompareParameters,
}
"""What a user may ask for, by kind."""

AnyRequest = Annotated[ImageRequest | VideoRequest | CompareRequest, Field(discriminator="kind")]
_REQUESTS: TypeAdapter[ImageRequest | VideoRequest | CompareRequest] = TypeAdapter(AnyRequest)


def read_request(text: str | bytes) -> ImageRequest | VideoRequest | CompareRequest:
    """A decided request from its JSON; raises pydantic's `ValidationError`."""
    return _REQUESTS.validate_json(text)
