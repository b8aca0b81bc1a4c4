"""How models get into memory and ready: read, warm up, measure batch limits. Imports torch; must not know budgets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from jobs.catalog import Catalog
from jobs.errors import JobFailed
from jobs.profile import FLOAT, ModelCard, ProfileCard
from pipelines.batch import run_together
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.families import AUTOENCODER_PARTS
from pipelines.guided import at_other_precision, kinds_of_calls
from pipelines.load import Components, load_components, load_denoiser
from pipelines.session import Exclusive, NumericalError, Order, Session
from quant import Grow
from workers.hub import Hub, Served
from workers.residents import REFERENCE
from workers.settings import WorkerSettings
from workers.turns import Turns

log = logging.getLogger(__name__)

WARMUP_STEPS = 1


class ModelLoader:
    """Loads from the catalog's folders for `Residents`."""

    def __init__(self, catalog: Catalog, settings: WorkerSettings, hub: Hub, turns: Turns, device: str) -> None:
        self._catalog = catalog
        self._settings = settings
        self._hub = hub
        self._turns = turns
        self._device = device

    def estimate(self, model: str, profile: str | None) -> int:
        """Bytes by the sizes of files and cards: near the truth where weights are stored as they are used."""
        card = self._catalog.card(model)
        if profile is not None and profile.endswith(REFERENCE):
            return self._catalog.profile(model, profile.removesuffix(REFERENCE)).float_weights_bytes
        if profile is not None:
            return self._catalog.profile(model, profile).weights_bytes
        parts = _folder(card).glob("*/*.safetensors")
        return sum(path.stat().st_size for path in parts if path.parent.name not in ("unet", "transformer"))

    def components(self, model: str) -> Components:
        """What all profiles of the model share. Its autoencoder takes breaths, as a video's frames take long."""
        dtype = dtype_on(self._device, self._settings)
        components = load_components(_folder(self._catalog.card(model)), device=self._device, dtype=dtype)
        for part in AUTOENCODER_PARTS:
            if isinstance(module := components.parts.get(part), nn.Module):
                let_breathe(module, self._turns)
        return components

    def denoiser(self, model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        """A profile's denoiser, unless `quick` warmed up on the model's default size and with its batch limit measured.

        A limit that was not measured is learned from the jobs' own calls.
        """
        if profile.endswith(REFERENCE):
            from pipelines.featured import open_featured

            card = self._catalog.profile(model, profile.removesuffix(REFERENCE))
            return Served(model, profile, open_featured(card, components))
        started = time.monotonic()
        denoiser = self._open(self._catalog.profile(model, profile), components, grow)
        served = Served(model, profile, denoiser)
        if quick:
            return served
        read = time.monotonic()
        call, seconds = self._warm_up(self._catalog.card(model), components, served)
        rows = self._hub.measure(served, call, seconds)
        log.info(
            "%s/%s: read in %.2f s, warmed up and measured in %.2f s, %d rows a call, %d bytes",
            model, profile, read - started, time.monotonic() - read, rows, denoiser.weights_bytes,
        )  # fmt: skip
        return served

    def _open(self, card: ProfileCard, components: Components, grow: Grow) -> Denoiser:
        if card.name == FLOAT:
            return TorchDenoiser(FLOAT, load_denoiser(components))
        from pipelines.quantized import load_profile  # OpenVINO, which the float profile does not need

        return load_profile(card, components, self._settings, backend=self._settings.backend, grow=grow)

    def _warm_up(self, card: ModelCard, components: Components, served: Served) -> tuple[DenoiserCall, float]:
        """Draws a picture at the default size, so that all is compiled; its last call and that call's seconds.

        Of a video nothing is decoded: no code is compiled for that, and it may take longer than all calls.
        """
        defaults = card.defaults
        seams = _WarmSeams(served.denoiser, self._turns, decodes=defaults.num_frames is None)
        order = Order(
            prompt="a",
            negative_prompt="",
            width=defaults.width,
            height=defaults.height,
            steps=WARMUP_STEPS,
            guidance=defaults.guidance_scale,
            seeds=[0],
            frames=defaults.num_frames,
            fps=defaults.fps,
        )
        try:
            with suppress(_Warm):
                Session(components, order, seams).draw()
        except NumericalError as error:
            log.warning("%s/%s: the warm-up of %d steps: %s", card.id, served.profile, WARMUP_STEPS, error)
        if seams.last is None:
            raise JobFailed(f"the pipeline of {card.id} never calls its denoiser")
        call, seconds = seams.last, seams.seconds
        for other in at_other_precision(call, served.denoiser.precision):
            # the warm-up's one step is a first one; the limit is measured on what most steps run by
            seams.denoise(other)
            call, seconds = other, seams.seconds
        for kind in (call, *at_other_precision(call, served.denoiser.precision)):
            for other in kinds_of_calls(kind, served.denoiser.guidance):
                seams.denoise(other)
        return call, seconds


def dtype_on(device: str, settings: WorkerSettings) -> torch.dtype:
    """What float weights and activations are on a device."""
    found: torch.dtype = torch.float32 if device == "cpu" else getattr(torch, settings.gpu_dtype)
    return found


def let_breathe(module: nn.Module, turns: Turns) -> None:
    """Has a module lend the device's turn to others between its layers, wherever it runs in a turn.

    What it computes stays the same. Modules keep nothing between layers that belongs to a call, and what video
    autoencoders keep between frames lies in each job's own shallow copy.
    """
    for layer in module.modules():
        layer.register_forward_pre_hook(lambda *_: turns.breathe())


class _Warm(BaseException):
    """Ends a warm-up that has seen enough."""


class _WarmSeams:
    """Runs the denoiser in turn with other jobs' work, and keeps the last call."""

    def __init__(self, denoiser: Denoiser, turns: Turns, *, decodes: bool) -> None:
        self._denoiser = denoiser
        self._turns = turns
        self._decodes = decodes
        self.last: DenoiserCall | None = None
        self.seconds = 0.0

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Runs now, or as soon as the device is free."""
        self.last = call
        with self._turns.take():
            started = time.monotonic()
            output = run_together(self._denoiser, [call])[0]
            self.seconds = time.monotonic() - started
        return output

    @contextmanager
    def alone(self, stage: Exclusive) -> Iterator[None]:
        """The device's turn; the end, where decoding is not worth it."""
        if stage == "vae_decode" and not self._decodes:
            raise _Warm
        with self._turns.take():
            yield

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        """Nobody watches a warm-up."""


def _folder(card: ModelCard) -> Path:
    if card.folder is None:
        raise JobFailed(f"model {card.id} has no folder on this machine")
    return card.folder
