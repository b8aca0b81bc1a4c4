"""A comparison as a request: what a user asks for and what the job runs. Knows bounds, never HTTP, Redis or torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from jobs.fields import (
    STRICT,
    Fps,
    Frames,
    Guidance,
    JobRequest,
    ModelId,
    Priority,
    ProfileName,
    Prompt,
    Seed,
    Side,
    Steps,
    Text,
)
from jobs.quality import Thresholds

FLOAT = "float"
COMPARE = "compare"
"""The kind, and what stands for the profile of a job that runs several."""

MAX_PROMPTS = 16
MAX_SEEDS = 16
MAX_PROFILES = 16
MAX_PICTURES = 64
"""Pictures that one comparison draws at most, float's among them."""

Prompts = Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS, strict=False)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_SEEDS, strict=False)]
Profiles = Annotated[tuple[ProfileName, ...], Field(min_length=1, max_length=MAX_PROFILES, strict=False)]


class CompareParameters(BaseModel):
    """What a user asks for who wants profiles held against float; a field left out is filled from the model's card."""

    model_config = STRICT

    kind: Literal["compare"] = "compare"
    prompt: Prompt | None = Field(None, description="One prompt; or several in `prompts`.")
    prompts: Prompts | None = None
    model: ModelId | None = Field(None, description="Model id from /v1/models; the service's default when left out.")
    profiles: Profiles | None = Field(None, description="What to hold against `float`; all that the model has.")
    negative_prompt: Text = ""
    seed: Seed | None = Field(None, description="One seed, drawn at random when left out; or several in `seeds`.")
    seeds: Seeds | None = Field(None, description="Every prompt is drawn from each of them.")
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    num_frames: Frames | None = Field(None, description="Of models of video.")
    fps: Fps | None = Field(None, description="Of models of video.")
    thresholds: Thresholds = Thresholds()
    temporal: bool = Field(True, description="Also compare temporal features, which runs each step once more.")
    # JSON knows no enums: the one field that must accept a plain string under strict mode.
    priority: Annotated[Priority, Field(strict=False)] = Priority.LOW

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either prompt or prompts")
        if self.seed is not None and self.seeds is not None:
            raise ValueError("give either seed or seeds")
        for name in ("prompts", "seeds", "profiles"):
            every = getattr(self, name) or ()
            if len(set(every)) < len(every):
                raise ValueError(f"{name} must differ")
        return self


class CompareRequest(JobRequest):
    """What a job runs that holds profiles against float: every prompt from every seed, by float and each profile."""

    kind: Literal["compare"] = "compare"
    profile: ProfileName = COMPARE
    profiles: tuple[ProfileName, ...] = Field(min_length=1, max_length=MAX_PROFILES)
    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=MAX_PROMPTS)
    seeds: tuple[Seed, ...] = Field(min_length=1, max_length=MAX_SEEDS)
    negative_prompt: Text = ""
    width: Side
    height: Side
    num_inference_steps: Steps
    guidance_scale: Guidance
    num_frames: Frames | None = None
    fps: Fps | None = None
    thresholds: Thresholds = Thresholds()
    temporal: bool = True
    priority: Priority = Priority.LOW

    @property
    def prompt(self) -> str:
        """The first prompt: what stands for the job in lists and logs."""
        return self.prompts[0]

    @property
    def seed(self) -> int:
        """The first seed."""
        return self.seeds[0]

    @property
    def output_format(self) -> Literal["png", "mp4"]:
        """How pictures and videos of a comparison are stored."""
        return "png" if self.num_frames is None else "mp4"

    @property
    def needs(self) -> tuple[str, ...]:
        """Profiles that its worker must serve."""
        return (FLOAT, *self.profiles)

    @property
    def pairs(self) -> Iterator[tuple[str, int]]:
        """(prompt, seed) of each picture of a profile, in order."""
        return ((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @property
    def pictures(self) -> int:
        """How many are drawn in all, float's among them."""
        return len(self.prompts) * len(self.seeds) * (1 + len(self.profiles))

    @property
    def lane(self) -> str:
        """That of what is drawn."""
        return "image" if self.num_frames is None else "video"

    @property
    def calls(self) -> int:
        """Denoiser calls of all pictures."""
        return self.num_inference_steps * (2 if self.guidance_scale > 1 else 1) * self.pictures

    @property
    def work(self) -> int:
        """Denoiser work in pixel-steps of all pictures, guidance counted twice."""
        passes = 2 if self.guidance_scale > 1 else 1
        pixels = self.width * self.height * (self.num_frames or 1)
        return pixels * self.num_inference_steps * passes * self.pictures
