"""A quantized denoiser on disk: a folder with `manifest.json` and safetensors, written whole or not, read strictly.

Knows nothing of pipelines: the caller names the float files that an artifact belongs to and builds the empty module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant.clock import MomentHolder
from quant.errors import ArtifactError
from quant.finer import Finer
from quant.guidance.plan import GuidancePlan
from quant.hashes import sha256_of
from quant.layers import as_float_layer, bind, quantized_layers, replace_layers
from quant.making import MAKING
from quant.manifest import MANIFEST, FallbackLeaf, Manifest, write_manifest
from quant.packing import pack, packed_bytes, unpack
from quant.precision import PreciseSteps
from quant.published import empty_of
from quant.quantize import Quantization
from quant.recipe import Recipe
from quant.replacing import replacing
from quant.report import LayerForm
from quant.rotation.attach import install_transforms
from quant.rotation.report import RotationReport
from quant.temporal.layers import StepwiseLinear, install

TENSORS, FALLBACK = "denoiser.safetensors", "temporal.safetensors"
PRECISE = "precise"
"""Folder, in the artifact's, of the copy that precise steps run by: an artifact of its own."""
PACKED_BITS = 7
"""Integers of at most so many bits are stored without bits that say nothing."""


def save(
    folder: Path,
    module: nn.Module,
    quantization: Quantization,
    recipe: Recipe,
    *,
    model: str,
    model_sha256: str,
    calibration: dict[str, Any],
    version: str,
    build_seconds: float | None = None,
    rotation: RotationReport | None = None,
    guidance: GuidancePlan | None = None,
    finer: Finer | None = None,
) -> Manifest:
    """Writes a quantized module as an artifact, replacing what was there. The same input gives the same bytes.

    `finer` is what the recipe's precise steps run by, where it has some.

    Raises:
        ArtifactError: a tensor holds NaN or infinity.
    """
    report = quantization.report
    contents = _contents(module, quantization)
    sizes = {file: sum(tensor.nbytes for tensor in tensors.values()) for file, tensors in contents.items()}
    about: dict[str, Any] = {"model": model, "model_sha256": model_sha256, "calibration": calibration}
    about["halftone_version"] = version
    with replacing(folder) as partial:
        for file, tensors in contents.items():
            save_file(tensors, partial / file)
            (partial / file).chmod(0o644)  # it is written readable by its owner alone
        files = {file: sha256_of([partial / file]) for file in sorted(contents)}
        precise, apart = _save_finer(partial, finer, guidance, about, report.bytes_before)
        manifest = Manifest(
            profile=recipe.name,
            backend=recipe.backend,
            float_in=recipe.float_in,
            decode_in=recipe.decode_in,
            upsampling=recipe.upsampling,
            recipe=recipe.model_dump(mode="json"),
            weight_bits=recipe.weights.bits,
            activation_bits=recipe.activations.bits,
            weights_bytes=sizes[TENSORS] + (precise.weights_bytes if precise else 0),
            fallback_bytes=sizes.get(FALLBACK, 0) + apart.fallback_bytes,
            float_weights_bytes=report.bytes_before,
            files=files | apart.files,
            layers=report.layers,
            **_of_layers(quantization, rotation),
            guidance=guidance,
            precision=precise,
            build_seconds=build_seconds,
            **about,
        )
        write_manifest(partial, manifest)
    return manifest


def _of_layers(quantization: Quantization, rotation: RotationReport | None) -> dict[str, Any]:
    """What a manifest holds to make the module again."""
    return {
        "forms": dict(quantization.forms),
        "transforms": dict(quantization.transforms),
        "rotation": None if rotation is None else rotation.with_transforms(quantization.transforms),
        "notes": quantization.report.notes,
        "temporal": quantization.plan,
        "fallback": tuple(FallbackLeaf(name=name, form=kept.form) for name, kept in quantization.fallback.items()),
    }


class _Apart(NamedTuple):
    """Files of a copy that is an artifact of its own, with hashes, and what of it is read only at unknown timesteps."""

    files: dict[str, str]
    fallback_bytes: int


def _save_finer(
    folder: Path, finer: Finer | None, guidance: GuidancePlan | None, about: dict[str, Any], float_bytes: int
) -> tuple[PreciseSteps | None, _Apart]:
    """Writes the copy that precise steps run by into an artifact's folder, unless it is the float model."""
    if finer is None:
        return None, _Apart({}, 0)
    if finer.copy is None:
        return finer.steps(float_bytes), _Apart({}, 0)
    told = {name: value for name, value in about.items() if name != "halftone_version"}
    own = save(folder / PRECISE, *finer.copy, **told, version=about["halftone_version"], guidance=guidance)
    files = {f"{PRECISE}/{name}": sha256_of([folder / PRECISE / name]) for name in (*own.files, MANIFEST)}
    return finer.steps(own.weights_bytes), _Apart(files, own.fallback_bytes)


def _contents(module: nn.Module, quantization: Quantization) -> dict[str, dict[str, Tensor]]:
    """Tensors by file."""
    contents = {TENSORS: _stored(module, quantization.forms)}
    if apart := quantization.fallback:
        holder = _namespace({name: kept.layer for name, kept in apart.items()})
        contents[FALLBACK] = _stored(holder, {name: kept.form for name, kept in apart.items() if kept.form is not None})
    return contents


def load_into(module: nn.Module, folder: Path, manifest: Manifest) -> nn.Module:
    """Turns a float module without weights (parameters on the meta device) into the artifact's quantized one.

    Raises:
        ArtifactError: the artifact's tensors are not exactly those that the module needs.
    """
    forms = manifest.forms
    with MAKING:
        if manifest.temporal is not None:
            install(module, manifest.temporal)
        install_transforms(module, manifest.transforms)
        replace_layers(module, _empty_layers(module, forms))
        _fill(module, folder / TENSORS, forms)
    unfilled = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if unfilled:
        raise ArtifactError(f"{folder} leaves these without values: {', '.join(sorted(unfilled)[:5])}")
    bind(module, MomentHolder())
    return module.eval().requires_grad_(False)


def load_fallback(module: nn.Module, folder: Path, manifest: Manifest) -> nn.Module:
    """Gives a float module without weights those of its temporal layers that are stored apart; the rest stays empty.

    Raises:
        ArtifactError: there are none, or they do not fit the module.
    """
    if FALLBACK not in manifest.files:
        raise ArtifactError(f"{folder} keeps no temporal layers for timesteps that its tables lack")
    forms = {leaf.name: leaf.form for leaf in manifest.fallback if leaf.form is not None}
    with MAKING:
        replace_layers(module, _empty_layers(module, forms))
        wanted = _namespace({leaf.name: module.get_submodule(leaf.name) for leaf in manifest.fallback})
        _fill(wanted, folder / FALLBACK, forms)
    return module.eval().requires_grad_(False)


def _namespace(modules: Mapping[str, nn.Module]) -> nn.Module:
    """A module that has each of those at its dotted name and nothing else."""
    root = nn.Module()
    for name, module in modules.items():
        *parents, leaf = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(leaf, module)
    return root


def _empty_layers(module: nn.Module, forms: Mapping[str, LayerForm]) -> dict[str, nn.Module]:
    modules, empty = dict(module.named_modules()), {}
    for name, form in forms.items():
        old = as_float_layer(modules[name]) if name in modules else None
        if old is None:
            raise ArtifactError(f"the artifact quantizes {name}, which the model does not have as a layer")
        empty[name] = _empty_layer(name, old, form)
    return empty


def _empty_layer(name: str, old: nn.Linear | nn.Conv2d, form: LayerForm) -> nn.Module:
    if form.kind == "stepwise":
        if form.input_bits is None:
            raise ArtifactError(f"the artifact has a grid for each step of {name}, but does not say of how many bits")
        return StepwiseLinear(tuple(old.weight.shape), old.bias is not None, form.input_bits, form.slots, "meta")
    try:
        return empty_of(old, form)
    except ValueError as error:
        raise ArtifactError(f"the artifact does not fit the model: {error}") from error


def _packed(module: nn.Module, forms: Mapping[str, LayerForm]) -> dict[str, int]:
    """Names of the integer tensors that are stored packed, and the bits of each integer."""
    owners = {name: forms.get(name.partition(".parts.")[0]) for name, _ in quantized_layers(module)}
    return {
        f"{name}.integers": form.weight_bits
        for name, form in owners.items()
        if form is not None and form.weight_bits <= PACKED_BITS
    }


def _stored(module: nn.Module, forms: Mapping[str, LayerForm]) -> dict[str, Tensor]:
    """A module's tensors as they lie in a file."""
    packed = _packed(module, forms)
    tensors = {
        name: pack(tensor, packed[name]) if name in packed else _compact(tensor.detach())
        for name, tensor in module.state_dict().items()
    }
    _require_finite(tensors)
    return tensors


def _fill(module: nn.Module, file: Path, forms: Mapping[str, LayerForm]) -> None:
    """Reads a file's tensors into a module of empty ones, strictly."""
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from error
    wanted = module.state_dict()
    for name, bits in _packed(module, forms).items():
        if name in stored:
            stored[name] = _unpacked(name, stored[name], wanted[name], bits, file)
    _require_match(wanted, stored, file)
    wide = {
        name: tensor.float() if tensor.dtype is torch.float16 and wanted[name].dtype is torch.float32 else tensor
        for name, tensor in stored.items()
    }
    module.load_state_dict(wide, strict=True, assign=True)


def _unpacked(name: str, packed: Tensor, wanted: Tensor, bits: int, file: Path) -> Tensor:
    count = wanted.numel()
    if packed.dtype is torch.int8 and packed.shape == wanted.shape and bits > 4:
        return packed  # as earlier versions stored them
    # in four bits earlier versions stored fewer, which for a handful of integers takes as many bytes as their own
    for width in (bits, 4) if bits < 4 else (bits,):
        if packed.dtype is torch.uint8 and packed.shape == (packed_bytes(count, width),):
            return unpack(packed, tuple(wanted.shape), width)
    raise ArtifactError(f"{file} does not fit the model: {name} does not hold {count} integers of {bits} bits")


def _require_match(wanted: dict[str, Tensor], stored: dict[str, Tensor], file: Path) -> None:
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    faults += [f"{name} is not of this model" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        expected, found = wanted[name], stored[name]
        dtypes = (expected.dtype, torch.float16) if expected.dtype is torch.float32 else (expected.dtype,)
        if expected.shape != found.shape or found.dtype not in dtypes:
            faults.append(f"{name} is {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}")
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ArtifactError(f"{file} does not fit the model: {'; '.join(faults[:8])}{more}")


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
