"""What the service knows of a model and of its profiles: two cards. Knows names and numbers, never weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.request import Fps, Frames, Guidance, Kind, ModelId, ProfileName, Side, Steps
from jobs.spread import Spread

BackendName = Literal["torch", "reference", "openvino", "null"]
"""What executes a denoiser; `torch` is the float model itself, `null` the benches' pipeline without a model."""

FLOAT = "float"
"""The profile that every model has."""

AUTO = "auto"
"""What requests name that promise something instead; no profile may have this name."""

Axis = Literal["seconds", "bytes"]
"""What a profile costs, to be held against its fidelity."""

AXES: tuple[Axis, ...] = ("seconds", "bytes")

_CARD = ConfigDict(extra="forbid", frozen=True)


class Fidelity(BaseModel):
    """A profile against float at the same seeds, measured when its artifact was built."""

    model_config = _CARD

    prompts: int
    psnr_db: float | None = Field(description="Mean over the pictures that differ from float's; null where none does.")
    identical: int = Field(0, description="How many of the pictures are identical with float's.")
    ssim: float
    prompt_accuracy: float | None = None
    float_prompt_accuracy: float | None = None
    trajectory_distance: float | None = Field(
        None, description="Relative distance of the latents from float's, mean over all steps of all pictures."
    )
    temporal_cosine_worst: float | None = Field(
        None, description="Least cosine of an output that depends on time alone with float's, over modules and steps."
    )
    mismatch_rate: float | None = Field(
        None, description="Share of such outputs that are most similar to float's of another step."
    )
    change_error: float | None = Field(
        None, description="Of videos: root mean square of how changes from frame to frame differ from float's, 0 to 1."
    )
    flicker: float | None = Field(
        None, description="Of videos: mean change, 0 to 1, from frame to frame of what stands still in float's video."
    )
    float_flicker: float | None = Field(None, description="Float's own mean change there.")
    seconds: float | None = Field(None, description="For one picture in a batch, on the machine that measured.")
    float_seconds: float | None = Field(None, description="The same by float, in the same run.")
    spread: Spread | None = Field(None, exclude=True, description="Picture by picture; None in older manifests.")


class GuidanceCard(BaseModel):
    """What a profile leaves out of classifier-free guidance, measured when its artifact was built."""

    model_config = _CARD

    saving: float = Field(
        ge=0, lt=1, description="Share of the denoiser's multiply-adds of a picture that is left out."
    )
    steps: str = Field(
        pattern="^[BSRN]*$",
        description="What each step runs. B: both branches; S: both, sharing attention; R: the conditional one, and "
        "kept differences stand in for the other; N: the conditional one, without guidance.",
    )
    guidance: tuple[float, float] = Field(description="Least and greatest guidance scale that it serves.")
    calibrated_guidance: float
    predicted_error: float | None = Field(
        None, description="Relative error of the final latents against full guidance, as expected when it was chosen."
    )
    measured_error: float | None = Field(None, description="The same, of pictures drawn to check it.")
    deviations: tuple[float, ...] = Field((), description="The same of the latents after each step.")

    def serves(self, num_inference_steps: int, guidance_scale: float) -> bool:
        """Whether a request is drawn by this plan: it was made for one number of steps, all others run in full."""
        low, high = self.guidance
        return num_inference_steps == len(self.steps) and low <= guidance_scale <= high

    @classmethod
    def of_plan(cls, plan: dict[str, Any]) -> GuidanceCard:
        """The card of a manifest's plan, which the quant room writes. Raises pydantic's `ValidationError`."""
        read = _Plan.model_validate(plan)
        return cls(
            **read.model_dump(exclude={"steps"}),
            steps="".join(step.letter for step in read.steps),
            deviations=tuple(step.deviation for step in read.steps),
        )


class PrecisionCard(BaseModel):
    """Which steps a profile runs by more exact weights, in a schedule of `total_steps`; of others, the same share."""

    model_config = _CARD

    form: Literal["float", "w8a8"] = Field(description="What runs these steps: the float model, or an 8-bit copy.")
    first_steps: int = Field(ge=0)
    last_steps: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    weights_bytes: int = Field(ge=0, description="Of the more exact copy; counted in the profile's own too.")


class _PlanStep(BaseModel):
    unconditional: Literal["run", "reuse"]
    gain: float
    earlier: tuple[float, ...] = ()
    pattern: int = 0
    deviation: float = 0.0

    @property
    def letter(self) -> str:
        if self.unconditional == "run":
            return "S" if self.pattern else "B"
        return "R" if any((self.gain, *self.earlier)) else "N"


class _Plan(BaseModel):
    steps: tuple[_PlanStep, ...]
    saving: float
    guidance: tuple[float, float]
    calibrated_guidance: float
    predicted_error: float | None = None
    measured_error: float | None = None


class ProfileCard(BaseModel):
    """One profile of one model."""

    model_config = _CARD

    name: ProfileName
    model: ModelId
    backend: BackendName
    recipe: str = Field(description="The recipe's name; `float` for the unquantized model.")
    weight_bits: int
    activation_bits: int
    weights_bytes: int = Field(description="Denoiser weights in bytes as this profile stores them.")
    float_weights_bytes: int = Field(description="The same weights in float32.")
    fidelity: Fidelity | None = None
    guidance: GuidanceCard | None = Field(None, description="Its guidance plan; null where all steps run in full.")
    pareto: tuple[Axis, ...] | None = Field(
        None,
        description="Where no other profile of the model has as much PSNR at as little cost, and more or less of one; "
        "null where its fidelity was not measured.",
    )
    precision: PrecisionCard | None = Field(None, description="Its precise steps; null where all run by one copy.")
    artifact: Path | None = Field(None, exclude=True)
    build: str = Field("", exclude=True, description="Names the build: a digest of its files.")

    @property
    def psnr_db(self) -> float | None:
        """Mean PSNR to float as its build measured it; infinite for float itself and where every picture was identical.

        None where nothing was measured.
        """
        if self.name == FLOAT:
            return math.inf
        if self.fidelity is None:
            return None
        return math.inf if self.fidelity.psnr_db is None else self.fidelity.psnr_db

    @property
    def time_of_float(self) -> float | None:
        """A picture's time as a share of float's, both drawn in one run by its build; None where none was taken."""
        if self.name == FLOAT:
            return 1.0
        own = None if self.fidelity is None else self.fidelity.seconds
        beside = None if self.fidelity is None else self.fidelity.float_seconds
        return own / beside if own and beside else None

    def time_without_plan(self, num_inference_steps: int, guidance_scale: float) -> float:
        """How many times as long a step takes at these settings as where its build measured it: above 1 where the
        guidance plan that it was measured with does not serve them.
        """
        plan = self.guidance
        return 1.0 if plan is None or plan.serves(num_inference_steps, guidance_scale) else 1 / (1 - plan.saving)


class Defaults(BaseModel):
    """What a request gets where it says nothing."""

    model_config = _CARD

    width: Side
    height: Side
    num_inference_steps: Steps
    guidance_scale: Guidance
    num_frames: Frames | None = Field(None, description="Of a video; null for models of pictures.")
    fps: Fps | None = Field(None, description="Of a video; null for models of pictures.")


class Limits(BaseModel):
    """What a request may ask of this model."""

    model_config = _CARD

    min_side: Side
    max_side: Side
    multiple_of: int
    max_pixels: int = Field(description="Of a picture or a frame.")
    max_steps: int = 50
    max_frames: Frames | None = Field(None, description="Most frames of a video; null for models of pictures.")
    frames_multiple_of: int | None = Field(
        None, ge=1, description="A video has 1 + a multiple of so many frames; null for models of pictures."
    )


class Motion(NamedTuple):
    """What a model of video makes where a request says nothing, and what it can: 1 + a multiple of `grain` frames."""

    num_frames: int
    fps: int
    most: int
    grain: int


class ModelCard(BaseModel):
    """One model: its id, kind, defaults, limits, and profiles."""

    model_config = _CARD

    id: ModelId
    kind: Kind = "image"
    pipeline: str = Field(description="The diffusers pipeline class.")
    description: str = ""
    defaults: Defaults
    limits: Limits
    trained_sizes: tuple[tuple[int, int], ...] = Field((), description="(width, height) pairs seen in training.")
    vocabulary: tuple[str, ...] | None = Field(None, description="Every word it knows, when that is a short list.")
    checker: str | None = Field(None, description="Name of what can tell whether a picture shows its prompt.")
    profiles: tuple[ProfileCard, ...] = ()
    folder: Path | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _frames_if_video(self) -> Self:
        facts = {
            "defaults.num_frames": self.defaults.num_frames,
            "defaults.fps": self.defaults.fps,
            "limits.max_frames": self.limits.max_frames,
            "limits.frames_multiple_of": self.limits.frames_multiple_of,
        }
        wrong = [name for name, value in facts.items() if (value is not None) != (self.kind == "video")]
        if wrong:
            verb = "needs" if self.kind == "video" else "has no"
            raise ValueError(f"a model of kind {self.kind!r} {verb} {', '.join(wrong)}")
        return self

    @property
    def motion(self) -> Motion | None:
        """Its frames, where it makes video; `most` is a count that it can make."""
        frames, fps = self.defaults.num_frames, self.defaults.fps
        most, grain = self.limits.max_frames, self.limits.frames_multiple_of
        if frames is None or fps is None or most is None or grain is None:
            return None
        return Motion(frames, fps, most - (most - 1) % grain, grain)

    def profile(self, name: str) -> ProfileCard | None:
        """The profile of that name, if the model has it."""
        return next((card for card in self.profiles if card.name == name), None)
