"""Feeds a denoiser what it meets in service: runs its pipeline over prompts, at the settings that requests default to.

This is the `run` that `quant.calibrate` asks for. Must not know how anything is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from jobs.profile import Defaults
from pipelines.families import call_arguments
from pipelines.load import Components, new_pipeline

Progress = Callable[[str, int, int], None]
"""Told (what is being done, how much of it is done, of how much)."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` for those who do not ask."""


def runner(
    components: Components,
    prompts: Sequence[str],
    defaults: Defaults,
    *,
    seed: int = 0,
    batch: int = 8,
    progress: Progress = silent,
) -> Callable[[nn.Module], None]:
    """What runs a float denoiser over all prompts, `batch` at a time, picture i from seed `seed + i`; no decoding.

    Raises:
        ValueError: there is no prompt.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt")

    def run(denoiser: nn.Module) -> None:
        pipeline = new_pipeline(components, denoiser)
        progress("calibrating", 0, len(prompts))
        for numbers in batched_range(len(prompts), batch):
            arguments = _arguments(pipeline, [prompts[number] for number in numbers], defaults)
            generators = [torch.Generator("cpu").manual_seed(seed + number) for number in numbers]
            with torch.inference_mode():
                pipeline(**arguments, generator=generators)
            progress("calibrating", numbers.stop, len(prompts))

    return run


def _arguments(pipeline: Any, prompts: list[str], defaults: Defaults) -> dict[str, Any]:
    arguments = call_arguments(
        pipeline,
        prompt="",
        negative_prompt="",
        width=defaults.width,
        height=defaults.height,
        steps=defaults.num_inference_steps,
        guidance=defaults.guidance_scale,
        n=1,
    )
    return arguments | {"prompt": prompts, "output_type": "latent"}


def batched_range(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1 in ranges of at most `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
