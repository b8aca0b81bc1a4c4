"""From a diffusers folder to parts in memory, and from parts to a pipeline object. Must not know jobs, threads or HTTP.

Only safetensors are read, only from the folder, and only classes of diffusers and transformers are built.
"""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from pipelines.denoiser import channels_last, module_bytes
from pipelines.families import AUTOENCODER_PARTS, OPTION_DEFAULTS, UNUSED_PARTS, UnsupportedModel, denoiser_part
from quant.making import MAKING

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class Components:
    """A model's parts but its denoiser's weights: what all its profiles share.

    Attributes:
        folder: where it was read from.
        pipeline_class: the diffusers pipeline class of model_index.json.
        parts: constructor arguments of that class, without the denoiser; the scheduler in it is a template.
        denoiser_part: the constructor argument that takes the denoiser: `unet` or `transformer`.
        skeleton: the denoiser without weights (on the meta device): its config and structure.
        device: where the parts lie.
        dtype: of all weights and activations.
        weights_bytes: memory of `parts`, measured.
    """

    folder: Path
    pipeline_class: type[Any]
    parts: dict[str, Any]
    denoiser_part: str
    skeleton: nn.Module
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int

    @property
    def scheduler_name(self) -> str:
        """The scheduler's class name."""
        return type(self.parts["scheduler"]).__name__


def quiet() -> None:
    """Silences the libraries' progress bars and hints for this process; errors and our own log stay."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def load_components(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Components:
    """Reads all of a model but its denoiser's weights.

    Raises:
        UnsupportedModel: the folder is no pipeline of diffusers, needs code of its own, lacks weights,
            or holds pickled weights only.
    """
    index = read_index(folder)
    name = denoiser_part(index)
    kind = class_of_pipeline(index)
    accepted = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {}
    for part, entry in index.items():
        if part.startswith("_") or part == name or part not in accepted:
            continue
        if not isinstance(entry, list):
            parts[part] = OPTION_DEFAULTS.get(part, entry)
        elif part in UNUSED_PARTS or entry[0] is None:
            parts[part] = None
        else:
            parts[part] = _load_part(folder, part, entry, torch.device(device), dtype)
    for autoencoder in AUTOENCODER_PARTS:
        if isinstance(parts.get(autoencoder), nn.Module):
            channels_last(parts[autoencoder])
    parts.update({option: value for option, value in OPTION_DEFAULTS.items() if option in accepted})
    return Components(
        folder=folder,
        pipeline_class=kind,
        parts=parts,
        denoiser_part=name,
        skeleton=_build_skeleton(folder, name, index[name]),
        device=torch.device(device),
        dtype=dtype,
        weights_bytes=sum(module_bytes(part) for part in parts.values() if isinstance(part, nn.Module)),
    )


def load_denoiser(components: Components) -> nn.Module:
    """Reads the denoiser's float weights into a fresh module, which the caller owns.

    Raises:
        UnsupportedModel: weights are missing or pickled.
    """
    entry = read_index(components.folder)[components.denoiser_part]
    module: nn.Module = _load_part(
        components.folder, components.denoiser_part, entry, components.device, components.dtype
    )
    return module


def load_skeleton(folder: Path) -> nn.Module:
    """A model's denoiser on the meta device: its config and structure. Reads JSON only; sees that weights are there.

    Raises:
        UnsupportedModel: the folder is no pipeline of diffusers, or holds no denoiser or none that could be loaded.
    """
    index = read_index(folder)
    part = denoiser_part(index)
    _refuse_pickles(folder / part)
    try:
        return _build_skeleton(folder, part, index[part])
    except (OSError, ValueError, TypeError) as error:
        raise UnsupportedModel(f"{folder / part} holds no denoiser that we can build: {error}") from error


def new_pipeline(components: Components, denoiser: Any) -> Any:
    """A pipeline object of its own for one job: shared parts, its own scheduler, and the denoiser given."""
    template = components.parts["scheduler"]
    parts = components.parts | {"scheduler": type(template).from_config(template.config)}
    pipeline = components.pipeline_class(**parts, **{components.denoiser_part: denoiser})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_index(folder: Path) -> dict[str, Any]:
    """A folder's model_index.json.

    Raises:
        UnsupportedModel: it has none, or one that is no object.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{folder} is no diffusers folder: {error}") from error
    if not isinstance(index, dict):
        raise UnsupportedModel(f"{folder}/model_index.json holds no object")
    return index


def class_of_pipeline(index: dict[str, Any]) -> type[Any]:
    """The diffusers class that a model_index.json names.

    Raises:
        UnsupportedModel: diffusers has no such pipeline.
    """
    name = index.get("_class_name")
    found: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UnsupportedModel(f"diffusers {diffusers.__version__} has no pipeline {name!r}; custom code is never run")
    return found


def _part_class(library: str, name: str) -> Any:
    if library in ("diffusers", "transformers"):
        source: Any = importlib.import_module(library)
    else:
        source = getattr(diffusers.pipelines, library, None)
    found: Any = getattr(source, name, None)
    if not isinstance(found, type):
        raise UnsupportedModel(f"neither diffusers nor transformers has {library}.{name}; custom code is never run")
    return found


def _load_part(folder: Path, part: str, entry: list[Any], device: torch.device, dtype: torch.dtype) -> Any:
    kind = _part_class(*entry)
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder / part, local_files_only=True)
    _refuse_pickles(folder / part)
    dtype_argument = "torch_dtype" if issubclass(kind, diffusers.ModelMixin) else "dtype"
    try:
        with MAKING:
            module, told = kind.from_pretrained(
                folder / part,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{dtype_argument: dtype},
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModel(f"{folder / part} cannot be loaded: {error}") from error
    if told["missing_keys"] or told.get("mismatched_keys"):
        lacking = sorted(map(str, told["missing_keys"]))[:5]
        raise UnsupportedModel(f"{folder / part} lacks weights or has wrong shapes: {', '.join(lacking)} …")
    return module.to(device).eval().requires_grad_(False)


def _refuse_pickles(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        found = f"only {', '.join(pickled)}, which can run code" if pickled else "no weights"
        raise UnsupportedModel(f"{folder} holds {found}; *.safetensors is needed")


def _build_skeleton(folder: Path, part: str, entry: list[Any]) -> nn.Module:
    kind = _part_class(*entry)
    with torch.device("meta"):
        module: nn.Module = kind.from_config(kind.load_config(folder / part, local_files_only=True))
    return module.eval().requires_grad_(False)
