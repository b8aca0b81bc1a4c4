"""`halftone quantize`, `evaluate` and `pull`: what is done to models without a server. Heavy imports happen inside."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from halftone import render
from halftone.commands.steps import progress_of
from halftone.options import Json
from jobs.errors import InvalidRequest

ModelArgument = Annotated[
    str,
    typer.Argument(help="A diffusers folder, a model's id (see `halftone models --local`), or OWNER/NAME on the hub."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="A file with a prompt a line, or a class, by number or name [default: the model's own]."),
]
Seed = Annotated[int, typer.Option(min=0, help="Picture i is drawn from seed + i.")]


def quantize(
    model: ModelArgument,
    recipe: Annotated[str, typer.Option(help="A recipe's name or TOML file.")] = "w8a8",
    prompts: Prompts = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--limit",
            min=1,
            help="Pictures to calibrate on [default: all prompts, or 64, or 256 where rounding is learned].",
        ),
    ] = None,
    seed: Seed = 0,
    fast: Annotated[bool, typer.Option("--fast", help="Round weights to nearest, no reconstruction.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: where a server looks].")] = None,
    json: Json = False,
) -> None:
    """Quantize a model's denoiser by a recipe, calibrated on prompts: an artifact that servers offer as a profile.

    Models that take classes or nothing instead of prompts are calibrated on those.
    """
    lines = read_prompts(prompts) if prompts else None
    from halftone.build import quantize_model

    with progress_of() as progress:
        made = quantize_model(model, recipe, lines, out, progress, samples=samples, seed=seed, fast=fast)
    if json:
        render.emit_json({"folder": str(made.folder), "profile": made.card})
        return
    render.emit_line(str(made.folder))
    render.emit_table(render.PROFILE_COLUMNS, [render.profile_row(made.card)])
    for line in (*render.guidance_lines(made.card), *render.precision_lines(made.card)):
        render.note(line)
    for reason, count in made.kept_float.items():
        render.note(f"{count} layers stay float: {reason}")


def evaluate(
    model: ModelArgument,
    profiles: Annotated[str | None, typer.Option(help="Names, comma between [default: all].")] = None,
    prompts: Prompts = None,
    limit: Annotated[int, typer.Option("--limit", "--samples", min=1, help="Pictures to draw at most.")] = 32,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, Markdown and plots.")] = None,
    json: Json = False,
) -> None:
    """Compare a model's profiles with float on the same prompts and seeds: fidelity, size, seconds."""
    names = [name.strip() for name in profiles.split(",") if name.strip()] if profiles else None
    lines = read_prompts(prompts) if prompts else None
    from halftone.evaluation import evaluate_model
    from halftone.evaluation_files import require_writable, write_files

    if out is not None:
        require_writable(out)
    with progress_of() as progress:
        found = evaluate_model(model, names, lines, limit, progress, seed=seed)
        files = write_files(found, out) if out is not None else []
    if json:
        render.emit_json([asdict(row) for row in found.rows])
    else:
        render.emit_table(*found.table())
    for note in (*found.notes, *map(str, files)):
        render.note(note)


def pull(
    repo: Annotated[str, typer.Argument(help="A repository on the hub, such as owner/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's id here [default: the repository's name].")] = None,
    json: Json = False,
) -> None:
    """Download a diffusers model from the hub into the data folder: safetensors, JSON and text files, never code."""
    from halftone.hub import pull_model

    folder = pull_model(repo, revision, name)
    if json:
        render.emit_json({"id": folder.name, "folder": str(folder)})
    else:
        render.emit_line(str(folder))
        render.note("A server finds it at its next start. Heed the model's own licence.")


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        InvalidRequest: there is none, or it is no text in UTF-8.
        OSError: it cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as fault:
        raise InvalidRequest(f"{path} is no text in UTF-8: {fault.reason}", param="prompts") from fault
    found = [line for line in lines if line]
    if not found:
        raise InvalidRequest(f"{path} holds no prompt; it takes one a line", param="prompts")
    return found
