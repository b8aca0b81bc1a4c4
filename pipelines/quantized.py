"""Artifacts opened as denoisers, for pipelines to call. Must not know how they are made, nor jobs' lives or queues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

import quant
from jobs.profile import ProfileCard
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.families import UnsupportedModel
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_denoiser
from quant.guidance.plan import GuidancePlan
from quant.making import MAKING
from quant.recipe_parts import FloatIn


class Means(Protocol):
    """What a backend may use; every `WorkerSettings` and `quant.Options` has it."""

    @property
    def cache_dir(self) -> Path:
        """Where compiled code may be kept."""

    @property
    def cache_bytes(self) -> int:
        """What that may take on disk."""

    @property
    def threads(self) -> int:
        """CPU threads; 0 leaves it to the backend."""


class QuantizedDenoiser:
    """An artifact that runs: the `Denoiser` of a quantized profile."""

    def __init__(
        self,
        name: str,
        backend: str,
        kind: type[nn.Module],
        executable: quant.Executable,
        guidance: GuidancePlan | None = None,
        precision: quant.PreciseSteps | None = None,
        decode_in: FloatIn = "float32",
    ) -> None:
        self.name = name
        self.backend = backend
        self.guidance = guidance
        self.precision = precision
        self.decode_in = decode_in
        self.executable = executable
        self._kind = kind

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take in memory now."""
        return self.executable.weights_bytes

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table knew."""
        return self.executable.fallbacks

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output [B, ...] on the call's device, in the sample's dtype.

        Raises:
            UnsupportedModel: the backend cannot run this denoiser.
        """
        try:
            output = torch.cat([self.executable.run(plain(part)) for part in library_calls(self._kind, call)])
        except quant.BackendError as error:
            raise UnsupportedModel(str(error)) from error
        return output.to(call.sample)

    def close(self) -> None:
        """Lets go of weights and compiled code."""
        self.executable.close()


def load_profile(
    card: ProfileCard,
    components: Components,
    means: Means,
    *,
    backend: str | None = None,
    grow: quant.Grow = quant.without_bound,
) -> Denoiser:
    """Opens a profile's artifact: what was quantized; or, where that is a guidance plan alone, the float model with it.

    `backend` is of what was quantized; None leaves it to the device, as `backend_on` tells.

    Raises:
        UnsupportedModel: as `load_quantized`.
    """
    if card.backend != "torch":
        found = backend or backend_on(components.device, card.backend)
        return load_quantized(card, components, means, backend=found, grow=grow)
    with _told(card):
        _, manifest = _verified(card, components, _hashes(means))
    return TorchDenoiser(card.name, load_denoiser(components), manifest.guidance, manifest.decode_in)


def backend_on(device: torch.device, backend: str) -> str:
    """What runs an artifact on a device: on a CPU what its manifest names; on a GPU our kernels."""
    return "cuda" if device.type == "cuda" else backend


def load_quantized(
    card: ProfileCard,
    components: Components,
    means: Means,
    *,
    backend: str | None = None,
    grow: quant.Grow = quant.without_bound,
) -> QuantizedDenoiser:
    """Opens a profile's artifact by its backend, or by `backend`. The float weights are hashed once, never loaded.

    `grow` is asked before it takes memory for further compiled copies of its weights.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model, or the backend is unknown.
    """
    kind, name = type(components.skeleton), backend or card.backend
    options = quant.Options(means.cache_dir, means.cache_bytes, means.threads, gpu_dtype=components.dtype, grow=grow)
    with _told(card):
        folder, manifest = _verified(card, components, _hashes(means))
        executable = quant.open_backend(
            name, folder, manifest, lambda: empty_denoiser(components), options, lambda: load_denoiser(components)
        )
    says = (manifest.guidance, manifest.precision, manifest.decode_in)
    return QuantizedDenoiser(card.name, name, kind, executable, *says)


def open_reference(card: ProfileCard, components: Components) -> tuple[nn.Module, quant.FeatureSource | None]:
    """A profile's artifact as a torch module, and what knows the moment of its calls where time matters to it.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model.
    """
    with _told(card):
        folder, manifest = _verified(card, components)
        if manifest.backend == "torch":
            return load_denoiser(components), None
        module = quant.load_into(empty_denoiser(components), folder, manifest)
        if manifest.temporal is None:
            return module, None
        return module, quant.feature_source(folder, manifest, lambda: empty_denoiser(components))


def _hashes(means: Means) -> quant.Hashes:
    return quant.Hashes(means.cache_dir / "hashes.json")


def _verified(
    card: ProfileCard, components: Components, hashes: quant.Hashes | None = None
) -> tuple[Path, quant.Manifest]:
    """The artifact, found whole, and its manifest; files that `hashes` knows are not read again."""
    if card.artifact is None:
        raise UnsupportedModel(f"profile {card.name} of {card.model} has no artifact")
    manifest = quant.read_manifest(card.artifact)
    model = denoiser_sha256(components.folder, components.denoiser_part, hashes)
    quant.verify(card.artifact, manifest, model, hashes)
    return card.artifact, manifest


@contextmanager
def _told(card: ProfileCard) -> Iterator[None]:
    """The library's faults, as faults of the profile."""
    try:
        yield
    except quant.QuantError as error:
        raise UnsupportedModel(f"profile {card.name} of {card.model}: {error}") from error


def denoiser_sha256(folder: Path, part: str, hashes: quant.Hashes | None = None) -> str:
    """Hash of a float denoiser's config and weights files: what an artifact belongs to.

    Raises:
        ArtifactError: there are none.
    """
    files = [folder / part / "config.json", *sorted((folder / part).glob("*.safetensors"))]
    return quant.sha256_of(files, hashes)


def empty_denoiser(components: Components) -> nn.Module:
    """The denoiser with its parameters on the meta device and its constant buffers real."""
    kind = type(components.skeleton)
    with MAKING, init_empty_weights(include_buffers=False):
        module: nn.Module = kind.from_config(components.skeleton.config)  # type: ignore[attr-defined]
    return module.eval().requires_grad_(False)
