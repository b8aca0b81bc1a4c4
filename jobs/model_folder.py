"""Reads one model's folder into its card: diffusers' layout, our optional `halftone.json`. Never reads a weight."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from jobs.profile import FLOAT, Defaults, Limits, ModelCard, ProfileCard
from jobs.request import Kind, ModelId
from jobs.video_folder import makes_video, video_defaults, video_limits

INDEX, SHEET = "model_index.json", "halftone.json"
DENOISERS = ("unet", "transformer")

_MAX_HEADER_BYTES = 100_000_000
_DEFAULT_SIDE = 512
_GUIDANCE = {"unet": 7.5, "transformer": 4.5}
_CLASS_GUIDANCE = 4.0
_AUTOENCODERS = ("vae", "vqvae")

T = TypeVar("T", Defaults, Limits)


class BrokenModel(Exception):
    """A folder that cannot be served; the message says why."""


class Sheet(BaseModel):
    """What `halftone.json` may say; what it leaves out follows the generic rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: ModelId | None = None
    kind: Kind | None = None
    description: str = ""
    defaults: Defaults | None = None
    limits: Limits | None = None
    trained_sizes: tuple[tuple[int, int], ...] = ()
    vocabulary: tuple[str, ...] | None = None
    checker: str | None = None


def read_model(folder: Path) -> ModelCard:
    """The card of the model in a folder, with its float profile.

    Raises `BrokenModel` when something needed is missing, `OSError`, `ValueError` (also pydantic's).
    """
    index = _object_in(folder / INDEX)
    part = next((name for name in DENOISERS if (folder / name).is_dir()), None)
    if part is None:
        raise BrokenModel(f"has none of the folders {', '.join(DENOISERS)}")
    sheet = Sheet.model_validate_json((folder / SHEET).read_bytes()) if (folder / SHEET).exists() else Sheet()
    name = sheet.id or folder.name
    kind, defaults, limits = _abilities(folder, part, index, sheet)
    return ModelCard(
        id=name,
        kind=kind,
        pipeline=str(index.get("_class_name", "")),
        description=sheet.description,
        defaults=defaults,
        limits=limits,
        trained_sizes=sheet.trained_sizes,
        vocabulary=sheet.vocabulary,
        checker=sheet.checker,
        profiles=(_float_profile(name, 4 * _count_parameters(folder / part)),),
        folder=folder,
    )


def null_model() -> ModelCard:
    """The benches' model: makes a constant picture at once, so that only the service around it takes time."""
    return ModelCard(
        id="null",
        pipeline="null",
        description="A constant picture without a model, for benchmarks and fault tests.",
        defaults=Defaults(width=64, height=64, num_inference_steps=4, guidance_scale=1.0),
        limits=Limits(min_side=8, max_side=2048, multiple_of=8, max_pixels=2_097_152),
        profiles=(_float_profile("null", 0).model_copy(update={"backend": "null"}),),
    )


def _float_profile(model: str, size: int) -> ProfileCard:
    return ProfileCard(
        name=FLOAT,
        model=model,
        backend="torch",
        recipe=FLOAT,
        weight_bits=32,
        activation_bits=32,
        weights_bytes=size,
        float_weights_bytes=size,
    )


def _object_in(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BrokenModel(f"has no {file.parent.name}/{file.name}") from None
    if not isinstance(value, dict):
        raise BrokenModel(f"{file.name} is not a JSON object")
    return value


def _abilities(folder: Path, part: str, index: dict[str, Any], sheet: Sheet) -> tuple[Kind, Defaults, Limits]:
    """What a model makes, what requests get by default, and what they may ask for; the sheet's word counts."""
    denoiser = _object_in(folder / part / "config.json")
    kind = sheet.kind or ("video" if makes_video(denoiser) else "image")
    if kind == "image":
        defaults = sheet.defaults or _generic_defaults(folder, part, index)
        return kind, defaults, sheet.limits or _generic_limits(defaults)
    autoencoder = next((folder / name for name in _AUTOENCODERS if (folder / name).is_dir()), None)
    configs = (
        str(index.get("_class_name", "")),
        denoiser,
        _object_in(autoencoder / "config.json") if autoencoder else {},
    )
    usual = video_defaults(*configs)
    defaults = _completed(sheet.defaults, usual)
    return kind, defaults, _completed(sheet.limits, video_limits(*configs, defaults))


def _completed(told: T | None, usual: T) -> T:
    """What the sheet says, with frames where it says nothing of them."""
    if told is None:
        return usual
    return usual.model_copy(update=told.model_dump(exclude_none=True))


def _generic_defaults(folder: Path, part: str, index: dict[str, Any]) -> Defaults:
    height, width = _trained_size(folder, part)
    guidance = _GUIDANCE[part] if _reads_text(index) else _guidance_without_text(folder, part)
    return Defaults(width=width, height=height, num_inference_steps=25, guidance_scale=guidance)


def _reads_text(index: dict[str, Any]) -> bool:
    """Whether a pipeline has parts for text; one that lists no parts at all is taken for one."""
    parts = [name for name, entry in index.items() if isinstance(entry, list)]
    return not parts or any(name.startswith(("text_encoder", "tokenizer")) for name in parts)


def _guidance_without_text(folder: Path, part: str) -> float:
    """1, which is none; but where the null class of `DiTPipeline`, number 1000, is one beyond the model's classes."""
    classes = _object_in(folder / part / "config.json").get("num_embeds_ada_norm")
    return _CLASS_GUIDANCE if part == "transformer" and classes == 1000 else 1.0


def _trained_size(folder: Path, part: str) -> tuple[int, int]:
    """(height, width) by the denoiser's sample size and the autoencoder's scale; 512 where the configs do not say."""
    sample = _object_in(folder / part / "config.json").get("sample_size")
    if sample is None:
        return _DEFAULT_SIDE, _DEFAULT_SIDE
    scale = _scale(next((folder / name for name in _AUTOENCODERS if (folder / name).is_dir()), None))
    sides = sample if isinstance(sample, list) else [sample, sample]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise BrokenModel(f"{part}/config.json has sample_size {sample!r}; expected one or two whole numbers")
    return sides[0] * scale, sides[1] * scale


def _scale(autoencoder: Path | None) -> int:
    """Pixels by latent, along a side; a model without an autoencoder works on pixels."""
    if autoencoder is None:
        return 1
    blocks = _object_in(autoencoder / "config.json").get("block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 8


def _generic_limits(defaults: Defaults) -> Limits:
    smallest = min(256, defaults.width, defaults.height)
    grain = math.gcd(16, defaults.width, defaults.height)
    return Limits(min_side=smallest, max_side=2048, multiple_of=grain, max_pixels=2_097_152)


def _count_parameters(folder: Path) -> int:
    """How many numbers the denoiser has, by the headers of its weights files."""
    every = sorted(folder.glob("*.safetensors"))
    if not every:
        raise BrokenModel(f"{folder.name} has no .safetensors file; other formats are never loaded")
    plain = [file for file in every if file.name.count(".") == 1]  # not `….fp16.safetensors` beside the same in full
    return sum(_numbers_in(file) for file in plain or every)


def _numbers_in(file: Path) -> int:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            raise BrokenModel(f"{file.name} is not a safetensors file, or was cut short")
        header = json.loads(stream.read(length))
    return sum(math.prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__")
