"""One job's own diffusers pipeline, unmodified, with three seams: its denoiser, its scheduler's clock, its VAE's door.

Who answers at the seams (a hub, or the denoiser directly) is not its business; it must not know jobs or queues.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from jobs.errors import JobFailed
from pipelines.denoiser import Denoiser, DenoiserCall
from pipelines.families import Subject, as_pictures, autoencoder, call_arguments
from pipelines.guided import GuidedCalls
from pipelines.load import Components, new_pipeline
from pipelines.precision import decoding_in
from pipelines.previews import preview
from pipelines.proxy import Clock, DenoiserProxy
from quant.guidance.plan import GuidancePlan
from quant.recipe_parts import FloatIn

Exclusive = Literal["text_encode", "vae_decode"]
"""Stages that serve one thread at a time."""


class NumericalError(JobFailed):
    """The model produced NaN or infinity."""

    code = "numerical_error"


@dataclass(frozen=True)
class Order:
    """What to draw: one picture per seed, all of one subject, or each of its own where `prompt` is a tuple of them.

    With `frames` a picture is a video of so many; `fps` matters to the few models that look at it.
    """

    prompt: Subject | tuple[Subject, ...]
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seeds: Sequence[int]
    frames: int | None = None
    fps: int | None = None


class Seams(Protocol):
    """What a session asks of the world around it. Any of the calls may raise to end the session."""

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Runs the denoiser: [B, ...] to [B, ...]."""

    def alone(self, stage: Exclusive) -> AbstractContextManager[None]:
        """Held around a stage: tokenizers, text encoders and VAEs serve one thread at a time."""

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        """`step` of `total` scheduler steps are done. `preview` decodes how far it is: [m, 3, H, W] in 0..1."""


class Session:
    """One run of one pipeline, with what a guidance plan leaves out left out. Use once, on one thread."""

    def __init__(
        self,
        components: Components,
        order: Order,
        seams: Seams,
        plan: GuidancePlan | None = None,
        decode_in: FloatIn = "float32",
    ) -> None:
        self._order = order
        self._decode_in = decode_in
        self._seams = seams
        self._clock = Clock()
        self._until_first_call = ExitStack()
        self.latents: Tensor | None = None  # what the scheduler's last step so far gave
        self._guided = None if plan is None else GuidedCalls(self._denoise, self._clock, plan, order.guidance)
        proxy = DenoiserProxy(
            components.skeleton,
            self._guided or self._denoise,
            self._clock,
            pictures=len(order.seeds),
            device=components.device,
            dtype=components.dtype,
        )
        self.pipeline = new_pipeline(components, proxy)
        watch_scheduler(self.pipeline.scheduler, self._clock, self._stepped)
        self._guard_autoencoder()

    @property
    def plan_unused(self) -> str | None:
        """Why the plan did not serve the run, once it is over; None where it did, or there is none."""
        return None if self._guided is None else self._guided.unused

    def draw(self) -> Tensor:
        """The pictures: [n, 3, H, W] float in 0..1, on the CPU; or videos: [n, F, 3, H, W].

        Raises:
            NumericalError: NaN or infinity came out.
            UnsupportedModel: the pipeline cannot do what the order asks.
        """
        order = self._order
        arguments = call_arguments(
            self.pipeline,
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            width=order.width,
            height=order.height,
            steps=order.steps,
            guidance=order.guidance,
            n=len(order.seeds),
            frames=order.frames,
            fps=order.fps,
        )
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in order.seeds]
        with torch.inference_mode(), self._until_first_call:
            self._until_first_call.enter_context(self._seams.alone("text_encode"))
            pictures = as_pictures(self.pipeline(**arguments, generator=generators)[0])
            return _finite(pictures, "picture")

    def _preview(self, predicted: Tensor) -> Tensor:
        order = self._order
        own = predicted[: len(order.seeds)]  # a few pipelines keep both halves of guidance
        return preview(self.pipeline, own, order.width, order.height, order.frames)

    def _denoise(self, call: DenoiserCall) -> Tensor:
        self._until_first_call.close()
        return self._seams.denoise(call)

    def _stepped(self, result: Any) -> None:
        clock = self._clock
        self.latents = result[0]
        if clock.step == clock.total and autoencoder(self.pipeline) is None:
            _finite(result[0], "picture")  # before it is cut to 0..1; with an autoencoder its door is guarded
        self._seams.stepped(clock.step, clock.total, lambda: self._preview(_predicted(result)))

    def _guard_autoencoder(self) -> None:
        part = autoencoder(self.pipeline)
        if part is None:
            return
        # a shallow copy shares all weights; only this job's pipeline sees the guarded method
        vae = copy.copy(getattr(self.pipeline, part))
        decode: Callable[..., Any] = vae.decode

        @functools.wraps(decode)
        def decode_alone(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            with self._seams.alone("vae_decode"), decoding_in(self._decode_in, latents):
                result = decode(_finite(latents, "latent"), *args, **kwargs)
            _finite(result[0], "decoded picture")
            return result

        vae.decode = decode_alone
        setattr(self.pipeline, part, vae)


def watch_scheduler(scheduler: Any, clock: Clock, stepped: Callable[[Any], None]) -> None:
    """Has a scheduler of one's own keep the clock, and tell every step's result when the clock has moved on."""
    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    @functools.wraps(set_timesteps)
    def set_and_count(*args: Any, **kwargs: Any) -> Any:
        result = set_timesteps(*args, **kwargs)
        clock.step, clock.total = 0, len(scheduler.timesteps)
        clock.timesteps = tuple(map(float, torch.as_tensor(scheduler.timesteps).tolist()))
        return result

    @functools.wraps(step)
    def step_and_count(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        clock.step += 1
        stepped(result)
        return result

    scheduler.set_timesteps, scheduler.step = set_and_count, step_and_count


class DirectSeams:
    """Runs the denoiser on the spot: for calibration, comparison and the command line without a server."""

    def __init__(self, denoiser: Denoiser, stepped: Callable[[int, int], None] | None = None) -> None:
        self._denoiser = denoiser
        self._stepped = stepped

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Runs the denoiser now."""
        return self._denoiser.run(call)

    def alone(self, stage: Exclusive) -> AbstractContextManager[None]:
        """There is nobody else."""
        return nullcontext()

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        """Tells whoever wants to know."""
        if self._stepped is not None:
            self._stepped(step, total)


def draw(components: Components, denoiser: Denoiser, order: Order) -> Tensor:
    """The pictures or videos of an order, made on this thread: [n, 3, H, W] or [n, F, 3, H, W] float in 0..1."""
    return Session(components, order, DirectSeams(denoiser), denoiser.guidance, denoiser.decode_in).draw()


def _predicted(result: Any) -> Tensor:
    """The scheduler's own guess at the clean latents where it makes one, else the latents as they are."""
    for name in ("pred_original_sample", "prev_sample"):
        value = getattr(result, name, None)
        if isinstance(value, Tensor):
            return value
    latents: Tensor = result[1] if len(result) > 1 and isinstance(result[1], Tensor) else result[0]
    return latents


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NumericalError(f"the model produced NaN or infinity in a {what}; try other settings or another profile")
    return values
