"""Between the quantization library and pipelines: artifacts opened as denoisers, and model folders made into artifacts.

The only file that knows both. Must not know jobs' lives, queues or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

import quant
from jobs.profile import Defaults, ProfileCard
from pipelines.calibrate import Progress, runner, silent
from pipelines.denoiser import DenoiserCall, argument_names
from pipelines.families import ROW_LISTS, UnsupportedModel
from pipelines.load import Components, load_components, load_denoiser


class Means(Protocol):
    """What a backend may use; every `WorkerSettings` and `quant.Options` has both."""

    @property
    def cache_dir(self) -> Path:
        """Where compiled code may be kept."""

    @property
    def threads(self) -> int:
        """CPU threads; 0 leaves it to the backend."""


class QuantizedDenoiser:
    """An artifact that runs: the `Denoiser` of a quantized profile."""

    def __init__(self, name: str, backend: str, kind: type[nn.Module], executable: quant.Executable) -> None:
        self.name = name
        self.backend = backend
        self.executable = executable
        self._sample_name, self._timestep_name = argument_names(kind)

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take in memory now."""
        return self.executable.weights_bytes

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output [B, ...] on the call's device, in the sample's dtype.

        Raises:
            UnsupportedModel: the backend cannot run this denoiser.
        """
        try:
            output = torch.cat([self.executable.run(part) for part in self._parts(call)])
        except quant.BackendError as error:
            raise UnsupportedModel(str(error)) from error
        return output.to(call.sample)

    def close(self) -> None:
        """Lets go of weights and compiled code."""
        self.executable.close()

    def _parts(self, call: DenoiserCall) -> list[quant.Call]:
        """The call as the library takes it; row by row where an argument is a list with an entry per row."""
        lists = {name: value for name, value in call.constants.items() if name in ROW_LISTS and isinstance(value, list)}
        whole = self.library_call(call)
        if not lists:
            return [whole]
        rows = [whole.take(torch.tensor([row])) for row in range(call.rows)]
        own = [{name: [value[row]] for name, value in lists.items()} for row in range(call.rows)]
        return [
            quant.Call(part.rows, part.clock, part.shared, {**part.constants, **mine})
            for part, mine in zip(rows, own, strict=True)
        ]

    def library_call(self, call: DenoiserCall) -> quant.Call:
        """The same call in the library's words: float32, on the CPU."""
        rows = {self._sample_name: call.sample, self._timestep_name: call.timestep, **call.inputs}
        return quant.Call(
            rows={name: _plain(tensor) for name, tensor in rows.items()},
            clock=quant.StepClock(call.step.cpu(), call.total_steps.cpu(), call.branch.cpu()),
            shared={name: _plain(tensor) for name, tensor in call.shared.items()},
            constants={**call.constants, "return_dict": False},
        )


def load_quantized(
    card: ProfileCard, components: Components, means: Means, *, backend: str | None = None
) -> QuantizedDenoiser:
    """Opens a profile's artifact by its backend, or by `backend`. The float weights are hashed, never loaded.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model, or the backend is unknown.
    """
    if card.artifact is None:
        raise UnsupportedModel(f"profile {card.name} of {card.model} has no artifact")
    kind, name = type(components.skeleton), backend or card.backend
    try:
        manifest = quant.read_manifest(card.artifact)
        quant.verify(card.artifact, manifest, denoiser_sha256(components.folder, components.denoiser_part))
        options = quant.Options(cache_dir=means.cache_dir, threads=means.threads)
        executable = quant.open_backend(name, card.artifact, manifest, lambda: empty_denoiser(components), options)
    except quant.QuantError as error:
        raise UnsupportedModel(f"profile {card.name} of {card.model}: {error}") from error
    return QuantizedDenoiser(card.name, name, kind, executable)


def quantize_folder(
    folder: Path,
    out: Path,
    recipe: quant.Recipe,
    prompts: Sequence[str],
    defaults: Defaults,
    *,
    model: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Path:
    """Calibrates and quantizes a model folder's denoiser, writes the artifact `out`, and returns its manifest's path.

    The same arguments give the same bytes. Whatever lay at `out` is replaced, once all is done.

    Raises:
        UnsupportedModel: the folder cannot be loaded.
        QuantError: a layer's weights or inputs are not finite.
        ValueError: there is no prompt.
    """
    progress("reading", 0, 1)
    components = load_components(folder)
    denoiser = load_denoiser(components)
    run = runner(components, prompts, defaults, seed=seed, progress=progress)
    statistics = quant.calibrate(denoiser, run)
    progress("quantizing", 0, 1)
    report = quant.quantize_(denoiser, recipe, statistics)
    quant.save(
        out,
        denoiser,
        report,
        recipe,
        model=model or folder.resolve().name,
        model_sha256=denoiser_sha256(folder, components.denoiser_part),
        calibration={"prompts": len(prompts), "seed": seed, **defaults.model_dump(mode="json")},
        version=halftone_version(),
    )
    progress("quantizing", 1, 1)
    return out / quant.MANIFEST


def denoiser_sha256(folder: Path, part: str) -> str:
    """Hash of a float denoiser's config and weights files: what an artifact belongs to.

    Raises:
        ArtifactError: there are none.
    """
    return quant.sha256_of([folder / part / "config.json", *sorted((folder / part).glob("*.safetensors"))])


def empty_denoiser(components: Components) -> nn.Module:
    """The denoiser with its parameters on the meta device and its constant buffers real."""
    kind = type(components.skeleton)
    with init_empty_weights(include_buffers=False):
        module: nn.Module = kind.from_config(components.skeleton.config)  # type: ignore[attr-defined]
    return module.eval().requires_grad_(False)


def halftone_version() -> str:
    """The installed version of this product, or `0` where it runs uninstalled."""
    try:
        return metadata.version("halftone")
    except metadata.PackageNotFoundError:
        return "0"


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor
