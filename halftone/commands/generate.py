"""`halftone generate`: one prompt, by a server or in this process, with a progress bar. Knows no HTTP and no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from halftone import render
from halftone.images import SUFFIXES, Images, format_of
from halftone.options import ApiKey, Json, Local, Url, connected
from halftone.wire import Event, parse_size
from jobs.errors import InvalidRequest

Step = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; its suffix is the format.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id [default: the service's].")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Quantization profile [default: float].")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT [default: the model's].")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [default: the model's].")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale [default: the model's].")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same picture [default: random].")] = None,
    count: Annotated[int | None, typer.Option("--n", "-n", help="How many pictures; picture i has seed + i.")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="png, webp or jpeg.")] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    local: Local = False,
    json: Json = False,
) -> None:
    """Make pictures of a prompt and save them."""
    fields: dict[str, Any] = {
        "model": model,
        "profile": profile,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "n": count,
        "output_format": format_of(output, output_format),
        "priority": priority,
    }
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    asked = {name: value for name, value in fields.items() if value is not None}
    with render.progress_bar() as progress:
        task = progress.add_task("waiting", total=None)

        def on_step(step: int, total: int) -> None:
            progress.update(task, description="denoising", completed=step, total=total)

        images = _locally(prompt, asked, on_step) if local else _remotely(prompt, asked, on_step, url, api_key)
    suffix = SUFFIXES[str(fields["output_format"])]
    paths = images.save(output or free_name(prompt, images, suffix))
    if json:
        render.emit_json(_as_json(images, paths))
    else:
        _tell(images, paths)


def _locally(prompt: str, asked: dict[str, Any], on_step: Step) -> Images:
    from halftone.local import generate_here

    return generate_here(prompt, asked, on_step)


def _remotely(prompt: str, asked: dict[str, Any], on_step: Step, url: str | None, api_key: str | None) -> Images:
    def on_event(event: Event) -> None:
        step, total = event.data.get("step"), event.data.get("total")
        if event.type == "progress" and isinstance(step, int) and isinstance(total, int):
            on_step(step, total)

    with connected(url, api_key) as client:
        return client.generate(prompt, on_event=on_event, **asked)


def free_name(prompt: str, images: Images, suffix: str) -> Path:
    """A file name of the prompt and the first seed, in the current folder, that overwrites nothing.

    Raises:
        InvalidRequest: the name exists, with and without a number up to 999.
    """
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"
    stem = f"{words}-{images[0].seed}"
    candidates = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    free = (Path(name + suffix) for name in candidates if not list(Path().glob(f"{name}*{suffix}")))
    found = next(free, None)
    if found is None:
        raise InvalidRequest(
            f"{stem}{suffix} exists, and so do its numbered names; choose one by --output", param="output"
        )
    return found


def _as_json(images: Images, paths: list[Path]) -> dict[str, Any]:
    files = [
        {"path": str(path), "seed": picture.seed, "mime": picture.about.mime, "sha256": picture.about.sha256}
        for path, picture in zip(paths, images, strict=True)
    ]
    return {
        "job_id": images.job_id,
        "files": files,
        "used": images.used,
        "costs": images.costs,
        "notices": images.notices,
    }


def _tell(images: Images, paths: list[Path]) -> None:
    for path, picture in zip(paths, images, strict=True):
        render.emit_line(f"{path}  (seed {picture.seed}, {picture.about.size_bytes} bytes)")
    render.note(render.used_line(images.used))
    if took := render.costs_line(images.costs):
        render.note(took)
    for notice in images.notices:
        render.note(f"note: {notice.message}")
