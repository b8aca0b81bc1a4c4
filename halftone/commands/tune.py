"""`halftone tune`: the cheapest recipe that keeps a promise. Heavy imports happen inside."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from halftone import render
from halftone.commands.offline import ModelArgument, Prompts, Seed, read_prompts
from halftone.commands.steps import progress_of
from halftone.options import Json


class Objective(StrEnum):
    """What is to be least."""

    LATENCY = "latency"
    MEMORY = "memory"


def tune(
    model: ModelArgument,
    min_psnr: Annotated[float, typer.Option(help="Mean PSNR to float, in dB, that pictures must have.")],
    objective: Annotated[Objective, typer.Option(help="What is to be least.")],
    name: Annotated[str | None, typer.Option(help="The profile's name [default: tuned-OBJECTIVE-PSNR].")] = None,
    prompts: Prompts = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Pictures to measure on [default: 16 at most].")] = None,
    learn: Annotated[
        int, typer.Option(min=0, help="Prompts to learn rounding on (256 is good): smaller, and takes far longer.")
    ] = 0,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Search a recipe: bits and rounding of each layer, tables, guidance plan: the cheapest that keeps a promise.

    Measured once, built, drawn and corrected until pictures of prompts that were held out keep the promise. A killed
    search goes on where it was. The result is a profile like any other, with the recipe that makes it again.
    """
    lines = read_prompts(prompts) if prompts else None
    from halftone.tune import tune_model

    with progress_of() as progress:
        made = tune_model(
            model, min_psnr, objective.value, name, lines, progress, samples=samples, learn=learn, seed=seed
        )
    if json:
        told = {"folder": str(made.folder), "profile": made.card, "picture": str(made.picture), "story": made.story}
        render.emit_json(told)
        return
    render.emit_line(str(made.folder))
    render.emit_table(render.PROFILE_COLUMNS, [render.profile_row(made.card)])
    for number, one in enumerate(made.story.rounds, start=1):
        expected = f"expected {one.expected_psnr_db:.1f} dB and {one.expected_bytes / 1e6:.2f} MB"
        learned = ", rounding learned" if one.learned else ""
        render.note(f"recipe {number}{learned}: {expected}, has {one.psnr_db:.1f} dB and {one.bytes / 1e6:.2f} MB")
    for line in render.guidance_lines(made.card):
        render.note(line)
    render.note(str(made.picture))
