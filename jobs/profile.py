"""What the service knows of a model and of its profiles: two cards. Knows names and numbers, never weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.request import Guidance, ModelId, ProfileName, Side, Steps

BackendName = Literal["torch", "reference", "openvino", "null"]
"""What executes a denoiser; `torch` is the float model itself, `null` the benches' pipeline without a model."""

FLOAT = "float"
"""The profile that every model has."""

_CARD = ConfigDict(extra="forbid", frozen=True)


class Fidelity(BaseModel):
    """A profile against float at the same seeds, measured when its artifact was built."""

    model_config = _CARD

    prompts: int
    psnr_db: float
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
    seconds: float | None = Field(None, description="For one picture in a batch, on the machine that measured.")
    float_seconds: float | None = Field(None, description="The same by float, in the same run.")


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
    artifact: Path | None = Field(None, exclude=True)


class Defaults(BaseModel):
    """What a request gets where it says nothing."""

    model_config = _CARD

    width: Side
    height: Side
    num_inference_steps: Steps
    guidance_scale: Guidance


class Limits(BaseModel):
    """What a request may ask of this model."""

    model_config = _CARD

    min_side: Side
    max_side: Side
    multiple_of: int
    max_pixels: int
    max_steps: int = 50


class ModelCard(BaseModel):
    """One model: its id, kind, defaults, limits, and profiles."""

    model_config = _CARD

    id: ModelId
    kind: Literal["image"] = "image"
    pipeline: str = Field(description="The diffusers pipeline class.")
    description: str = ""
    defaults: Defaults
    limits: Limits
    trained_sizes: tuple[tuple[int, int], ...] = Field((), description="(width, height) pairs seen in training.")
    vocabulary: tuple[str, ...] | None = Field(None, description="Every word it knows, when that is a short list.")
    profiles: tuple[ProfileCard, ...] = ()
    folder: Path | None = Field(None, exclude=True)

    def profile(self, name: str) -> ProfileCard | None:
        """The profile of that name, if the model has it."""
        return next((card for card in self.profiles if card.name == name), None)
