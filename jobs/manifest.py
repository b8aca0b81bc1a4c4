"""What an artifact's `manifest.json` says, as the catalog reads it. The quant room writes it; weights stay unread."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.profile import Fidelity, GuidanceCard, PrecisionCard, ProfileCard
from jobs.request import ModelId, ProfileName

FILE_NAME = "manifest.json"


class Manifest(BaseModel):
    """A recipe applied to a model, with everything that a user may want to know of the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    model: ModelId
    profile: ProfileName
    backend: Literal["openvino", "reference", "torch"]
    float_in: Literal["float32", "bfloat16"] = "float32"
    decode_in: Literal["float32", "bfloat16"] = "float32"
    upsampling: Literal["direct", "polyphase"] = "direct"
    recipe: dict[str, Any]
    weight_bits: int = Field(ge=1, le=32)
    activation_bits: int = Field(ge=1, le=32)
    weights_bytes: int = Field(ge=0)
    float_weights_bytes: int = Field(ge=0)
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of the denoiser's float weights file.")
    files: dict[str, str] = Field(description="Sha256 by file name.")
    layers: list[dict[str, Any]]
    forms: dict[str, dict[str, Any]] = {}
    transforms: dict[str, dict[str, Any]] = {}
    rotation: dict[str, Any] | None = None
    notes: list[str] = []
    temporal: dict[str, Any] | None = None
    fallback: list[dict[str, Any]] = []
    guidance: dict[str, Any] | None = None
    precision: PrecisionCard | None = None
    fallback_bytes: int = Field(0, ge=0, description="Stored apart, read only for timesteps that no table knows.")
    build_seconds: float | None = Field(None, ge=0)
    calibration: dict[str, Any]
    fidelity: Fidelity | None = None
    halftone_version: str

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """Read a manifest; raises `OSError` or pydantic's `ValidationError`."""
        return cls.model_validate_json(file.read_bytes())

    def card(self, folder: Path) -> ProfileCard:
        """The profile that this artifact, lying in `folder`, gives its model."""
        return ProfileCard(
            name=self.profile,
            model=self.model,
            backend=self.backend,
            recipe=str(self.recipe.get("name", self.profile)),
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            weights_bytes=self.weights_bytes,
            float_weights_bytes=self.float_weights_bytes,
            fidelity=self.fidelity,
            guidance=None if self.guidance is None else GuidanceCard.of_plan(self.guidance),
            precision=self.precision,
            artifact=folder,
            build=hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()[:16],
        )
