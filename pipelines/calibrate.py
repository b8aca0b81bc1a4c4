"""Feeds whoever asks what a denoiser meets in service: runs its pipeline at the settings that requests default to.

This is the `run` that `quant.calibrate` asks for. Must not know how anything is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import quant
from jobs.profile import Defaults
from pipelines.denoiser import DenoiserCall
from pipelines.families import Subject, call_arguments
from pipelines.guided import GuidedCalls, Submit
from pipelines.library_call import library_calls
from pipelines.load import Components, new_pipeline
from pipelines.proxy import Clock, DenoiserProxy
from pipelines.session import watch_scheduler
from quant.guidance.plan import GuidancePlan

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, of how much)."""

Answer = Callable[[quant.Call], Tensor]
"""What stands in for the denoiser: a call of B rows to its output [B, ...]."""


@dataclass(frozen=True)
class Run:
    """A finished run of a pipeline: its scheduler's timesteps, and why a plan did not serve it, where one was given."""

    timesteps: tuple[float, ...]
    plan_unused: str | None


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` for those who do not ask."""


def runner(
    components: Components,
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int = 0,
    batch: int = 8,
    plan: GuidancePlan | None = None,
    progress: Progress = silent,
    told: str = "calibrating",
) -> Callable[[Answer], None]:
    """What draws all subjects, `batch` at a time, picture i from seed `seed + i`, and has every denoiser call answered.

    The calls are those that the float denoiser would get: rows of both branches together where the pipeline does so,
    the clock set, tensors in the pipeline's dtypes; with a plan, without the rows that it leaves out. Nothing is
    decoded where the pipeline allows that.

    Raises:
        ValueError: there is no subject.
    """
    if not subjects:
        raise ValueError("calibration needs at least one prompt, or how many pictures to draw without prompts")

    kind = type(components.skeleton)

    def run(answer: Answer) -> None:
        def submit(call: DenoiserCall) -> Tensor:
            return torch.cat([answer(part) for part in library_calls(kind, call)]).to(call.sample)

        progress(told, 0, len(subjects))
        for numbers in batched_range(len(subjects), batch):
            chosen, seeds = [subjects[number] for number in numbers], [seed + number for number in numbers]
            run_pipeline(components, chosen, seeds, defaults, submit, plan=plan)
            progress(told, numbers.stop, len(subjects))

    return run


def run_pipeline(
    components: Components,
    subjects: Sequence[Subject],
    seeds: Sequence[int],
    defaults: Defaults,
    submit: Submit,
    *,
    stepped: Callable[[int, Tensor], None] = lambda step, latents: None,
    plan: GuidancePlan | None = None,
) -> Run:
    """Draws a batch of pictures, each from its own seed, by whoever answers the denoiser's calls; they are not kept.

    Args:
        components: of the model.
        subjects: one for each picture.
        seeds: likewise.
        defaults: the settings.
        submit: runs a call of the denoiser; it may keep tensors and train on them.
        stepped: told the number of each finished step, from 0, and the latents [n, ...] after it.
        plan: what is left out of guidance.
    """
    clock = Clock()
    guided = None if plan is None else GuidedCalls(submit, clock, plan, defaults.guidance_scale)
    proxy = DenoiserProxy(
        components.skeleton,
        guided or submit,
        clock,
        pictures=len(subjects),
        device=components.device,
        dtype=components.dtype,
    )
    pipeline = new_pipeline(components, proxy)
    # a few pipelines hand the scheduler both halves of guidance, in which the rows of a picture are equal
    watch_scheduler(pipeline.scheduler, clock, lambda result: stepped(clock.step - 1, result[0][: len(subjects)]))
    arguments = call_arguments(
        pipeline,
        prompt=tuple(subjects),
        negative_prompt="",
        width=defaults.width,
        height=defaults.height,
        steps=defaults.num_inference_steps,
        guidance=defaults.guidance_scale,
        n=len(subjects),
        frames=defaults.num_frames,
        fps=defaults.fps,
    )
    if isinstance(subjects[0], str):
        arguments["output_type"] = "latent"  # nobody looks at the pictures; pipelines without prompts cannot stop here
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.no_grad(), seeded(seeds[0]):  # not inference mode, whose tensors cannot be trained on
        pipeline(**arguments, generator=generators)
    return Run(clock.timesteps, None if guided is None else guided.unused)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the global generator starts from a seed: a few pipelines draw noise from it whatever they are given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def batched_range(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1 in ranges of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
