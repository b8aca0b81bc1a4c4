"""Draws several subjects at once by one denoiser, keeping the latents of every step. Must not know what is compared."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jobs.profile import Defaults
from pipelines.calibrate import seeded
from pipelines.denoiser import Denoiser
from pipelines.families import Subject
from pipelines.load import Components
from pipelines.session import DirectSeams, Order, Session


@dataclass(frozen=True, slots=True)
class Drawn:
    """n pictures of one batch.

    Attributes:
        pictures: [n, C, H, W] float in 0..1, on the CPU; or videos: [n, F, C, H, W].
        latents: after each call of the scheduler's step, [n, ...] float32 on the CPU.
        seconds: for one picture: the batch's time over n.
    """

    pictures: Tensor
    latents: list[Tensor]
    seconds: float


def draw_batch(
    components: Components, denoiser: Denoiser, subjects: Sequence[Subject], seeds: Sequence[int], defaults: Defaults
) -> Drawn:
    """One picture per subject, each from its own seed: the noise is that of drawing it alone.

    Raises:
        NumericalError: NaN or infinity came out.
        UnsupportedModel: the pipeline cannot draw these subjects at these settings.
    """
    order = Order(
        prompt=tuple(subjects),
        negative_prompt="",
        width=defaults.width,
        height=defaults.height,
        steps=defaults.num_inference_steps,
        guidance=defaults.guidance_scale,
        seeds=seeds,
        frames=defaults.num_frames,
        fps=defaults.fps,
    )
    session = Session(components, order, DirectSeams(denoiser), denoiser.guidance, denoiser.decode_in)
    return draw_watched(session, seeds)


def draw_watched(session: Session, seeds: Sequence[int]) -> Drawn:
    """What a session draws of these seeds, with the latents on the way. Raises as `draw_batch`."""
    latents: list[Tensor] = []
    _keep_latents(session.pipeline.scheduler, len(seeds), latents)
    started = time.perf_counter()
    with seeded(seeds[0]):
        pictures = session.draw()
    return Drawn(pictures, latents, (time.perf_counter() - started) / len(seeds))


def _keep_latents(scheduler: Any, rows: int, kept: list[Tensor]) -> None:
    """Has a session's own scheduler keep what each step gives; a few pipelines hand it both halves of guidance, in
    which the rows of a picture are equal.
    """
    step = scheduler.step

    @functools.wraps(step)
    def step_and_keep(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        kept.append(result[0][:rows].detach().to("cpu", torch.float32, copy=True))
        return result

    scheduler.step = step_and_keep
