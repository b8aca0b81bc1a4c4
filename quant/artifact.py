"""A quantized denoiser on disk: a folder with `manifest.json` and safetensors, written whole or not, read strictly.

Knows nothing of pipelines: the caller names the float files that an artifact belongs to and builds the empty module.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.errors import ArtifactError
from quant.layers import QuantizedLayer, as_float_layer, empty_like, replace_layers
from quant.recipe import Recipe
from quant.report import LayerReport, Report

FORMAT: Final = 1
"""Version of the folder's layout. A reader refuses any other."""

MANIFEST, TENSORS = "manifest.json", "denoiser.safetensors"


class Manifest(BaseModel):
    """What `manifest.json` holds.

    `model_sha256` is of the float denoiser's files, `files` maps each file of the artifact to its SHA-256,
    `weights_bytes` counts the tensors stored, `float_weights_bytes` the same weights in float32. What stays float is
    stored in float16 where that loses nothing; a backend holds it in float32 (`memory_bytes`). `calibration` says by
    what it was calibrated, `fidelity` what was measured of it, in the words of whoever measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    model: str
    profile: str
    backend: str = "openvino"
    recipe: dict[str, Any]
    weight_bits: int
    activation_bits: int
    weights_bytes: int
    float_weights_bytes: int
    model_sha256: str
    files: dict[str, str]
    layers: tuple[LayerReport, ...]
    calibration: dict[str, Any]
    fidelity: dict[str, Any] | None = None
    halftone_version: str

    @property
    def memory_bytes(self) -> int:
        """Bytes of one copy of the weights as a backend holds them."""
        return sum(layer.bytes_after for layer in self.layers)


def sha256_of(paths: Sequence[Path]) -> str:
    """One hex digest over the names and contents of files, in the order given.

    Raises:
        ArtifactError: a file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for path in paths:
            with path.open("rb") as file:
                total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}") from error
    return total.hexdigest()


def save(
    folder: Path,
    module: nn.Module,
    report: Report,
    recipe: Recipe,
    *,
    model: str,
    model_sha256: str,
    calibration: dict[str, Any],
    version: str,
) -> Manifest:
    """Writes a quantized module as an artifact, replacing what was there. The same input gives the same bytes.

    Raises:
        ArtifactError: a tensor holds NaN or infinity.
    """
    tensors = {name: _compact(tensor.detach()) for name, tensor in module.state_dict().items()}
    _require_finite(tensors)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, partial / TENSORS)
        (partial / TENSORS).chmod(0o644)  # it is written readable by its owner alone
        manifest = Manifest(
            model=model,
            profile=recipe.name,
            recipe=recipe.model_dump(mode="json"),
            weight_bits=recipe.weights.bits,
            activation_bits=recipe.activations.bits,
            weights_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            float_weights_bytes=report.bytes_before,
            model_sha256=model_sha256,
            files={TENSORS: sha256_of([partial / TENSORS])},
            layers=report.layers,
            calibration=calibration,
            halftone_version=version,
        )
        _write_manifest(partial, manifest)
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def set_fidelity(folder: Path, fidelity: dict[str, Any]) -> Manifest:
    """Writes into an artifact's manifest what was measured of it.

    Raises:
        ArtifactError: there is no valid manifest.
    """
    manifest = read_manifest(folder).model_copy(update={"fidelity": fidelity})
    _write_manifest(folder, manifest)
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


def verify(folder: Path, manifest: Manifest, model_sha256: str | None = None) -> None:
    """Checks every file of an artifact against its hash, and, where given, the float model it was made from.

    Raises:
        ArtifactError: a file is missing or changed, or the artifact is of another model.
    """
    for name, expected in manifest.files.items():
        if sha256_of([folder / name]) != expected:
            raise ArtifactError(f"{folder / name} is not the file that the manifest names: its SHA-256 differs")
    if model_sha256 is not None and model_sha256 != manifest.model_sha256:
        raise ArtifactError(
            f"{folder} was made from other weights or another config than the model at hand "
            f"({manifest.model_sha256[:12]}… is not {model_sha256[:12]}…): quantize it again"
        )


def load_into(module: nn.Module, folder: Path, manifest: Manifest) -> nn.Module:
    """Turns a float module without weights (parameters on the meta device) into the artifact's quantized one.

    Raises:
        ArtifactError: the artifact's tensors are not exactly those that the module needs.
    """
    replace_layers(module, _empty_layers(module, manifest))
    try:
        stored = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / TENSORS} cannot be read: {error}") from error
    _require_match(module.state_dict(), stored, folder)
    wide = {name: tensor.float() if tensor.dtype is torch.float16 else tensor for name, tensor in stored.items()}
    module.load_state_dict(wide, strict=True, assign=True)
    unfilled = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if unfilled:
        raise ArtifactError(f"{folder} leaves these without values: {', '.join(sorted(unfilled)[:5])}")
    return module.eval().requires_grad_(False)


def _empty_layers(module: nn.Module, manifest: Manifest) -> dict[str, QuantizedLayer]:
    recipe, modules = Recipe.model_validate(manifest.recipe), dict(module.named_modules())
    empty: dict[str, QuantizedLayer] = {}
    for name in (layer.name for layer in manifest.layers if layer.scheme is not None):
        scheme = recipe.decide(name).scheme
        old = as_float_layer(modules[name]) if name in modules else None
        if old is None or scheme is None:
            raise ArtifactError(f"the artifact quantizes {name}, which the model, or the recipe, does not")
        empty[name] = empty_like(old, scheme.activations.bits)
    return empty


def _require_match(wanted: dict[str, Tensor], stored: dict[str, Tensor], folder: Path) -> None:
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    faults += [f"{name} is not of this model" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        expected, found = wanted[name], stored[name]
        dtypes = (expected.dtype, torch.float16) if expected.dtype is torch.float32 else (expected.dtype,)
        if expected.shape != found.shape or found.dtype not in dtypes:
            faults.append(f"{name} is {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ArtifactError(f"{folder / TENSORS} does not fit the model: {'; '.join(faults[:8])}{more}")


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in float16 where that loses nothing, as for models that ship in float16; else as it is."""
    if tensor.dtype is torch.float32 and torch.equal(tensor.half().float(), tensor):
        tensor = tensor.half()
    return tensor.contiguous()


def _require_finite(tensors: dict[str, Tensor]) -> None:
    broken = [
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise ArtifactError(f"nothing was saved: NaN or infinity in {', '.join(broken[:5])}")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"
    partial = folder / f".{MANIFEST}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / MANIFEST)


def _put_in_place(partial: Path, folder: Path) -> None:
    partial.chmod(0o755)
    old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
