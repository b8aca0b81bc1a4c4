"""What an artifact says of itself: `manifest.json`, read strictly, and the hashes that hold its files together.

Knows data and files, never tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant.errors import ArtifactError
from quant.guidance.plan import GuidancePlan
from quant.hashes import Hashes, sha256_of
from quant.precision import PreciseSteps
from quant.recipe_parts import FloatIn, Upsampling
from quant.report import LayerForm, LayerReport
from quant.rotation.report import RotationReport, TransformForm
from quant.temporal.features import TemporalPlan

FORMAT: Final = 2
"""Version of the folder's layout. A reader refuses any other."""

MANIFEST = "manifest.json"


class FallbackLeaf(BaseModel):
    """One temporal layer that is stored apart; `form` is None where it is float."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    form: LayerForm | None


class Manifest(BaseModel):
    """What `manifest.json` holds.

    `model_sha256` is of the float denoiser's files, `files` maps each file of the artifact to its SHA-256.
    `weights_bytes` counts the tensors stored for every call, and the more exact copy that `precision` tells of;
    `fallback_bytes` those stored apart, read only where a table has no answer; `float_weights_bytes` all weights in
    float32. What stays float is stored in float16 where that loses nothing, and weights of 2 to 7 bits without gaps; a
    backend holds them in float32 and int8 (`memory_bytes`). `forms` has every layer with integers, by its name in the
    quantized module; `transforms` every layer whose input is changed before, by the name that it has in the float
    module, and `rotation` what was folded; `temporal` says what holds of time, `calibration` by what it was calibrated,
    `fidelity` what was measured of it, in the words of whoever measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = FORMAT
    model: str
    profile: str
    backend: str = "openvino"
    float_in: FloatIn = "float32"
    decode_in: FloatIn = "float32"
    upsampling: Upsampling = "direct"
    recipe: dict[str, Any]
    weight_bits: int
    activation_bits: int
    weights_bytes: int
    fallback_bytes: int = 0
    float_weights_bytes: int
    model_sha256: str
    files: dict[str, str]
    layers: tuple[LayerReport, ...]
    forms: dict[str, LayerForm] = {}
    transforms: dict[str, TransformForm] = {}
    rotation: RotationReport | None = None
    notes: tuple[str, ...] = ()
    temporal: TemporalPlan | None = None
    fallback: tuple[FallbackLeaf, ...] = ()
    guidance: GuidancePlan | None = None
    precision: PreciseSteps | None = None
    calibration: dict[str, Any]
    build_seconds: float | None = Field(None, description="Of quantizing, with calibration.")
    fidelity: dict[str, Any] | None = None
    halftone_version: str

    @property
    def memory_bytes(self) -> int:
        """Bytes of one copy of the weights as a backend holds them, without the more exact one."""
        return sum(layer.bytes_after for layer in self.layers)


def set_fidelity(folder: Path, fidelity: dict[str, Any]) -> Manifest:
    """Writes into an artifact's manifest what was measured of it.

    Raises:
        ArtifactError: there is no valid manifest.
    """
    manifest = read_manifest(folder).model_copy(update={"fidelity": fidelity})
    write_manifest(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        ArtifactError: there is none, it is no JSON, of another format version, or a field is unknown or missing.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{folder} is no artifact: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON: {error}") from error
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise ArtifactError(f"{path} has format {raw.get('format')!r}; this version reads format {FORMAT}")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        raise ArtifactError(f"{path} is no manifest: {faults}") from error


def verify(folder: Path, manifest: Manifest, model_sha256: str | None = None, hashes: Hashes | None = None) -> None:
    """Checks every file of an artifact against its hash, and, where given, the float model it was made from. Files are
    read, but for those that `hashes` knows and that have not changed since.

    Raises:
        ArtifactError: a file is missing or changed, or the artifact is of another model.
    """
    for name, expected in manifest.files.items():
        if sha256_of([folder / name], hashes) != expected:
            raise ArtifactError(f"{folder / name} is not the file that the manifest names: its SHA-256 differs")
    if model_sha256 is not None and model_sha256 != manifest.model_sha256:
        raise ArtifactError(
            f"{folder} was made from other weights or another config than the model at hand "
            f"({manifest.model_sha256[:12]}… is not {model_sha256[:12]}…): quantize it again"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes an artifact's manifest, whole or not."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"
    partial = folder / f".{MANIFEST}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / MANIFEST)
