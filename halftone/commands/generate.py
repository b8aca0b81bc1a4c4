"""`halftone generate`: pictures or a video of a prompt, by a server or in this process. Knows no HTTP and no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from halftone import render
from halftone.commands.steps import Step, require_writable_file, steps_of, steps_shown
from halftone.images import FORMATS, SUFFIXES, VIDEO_FORMATS, VIDEO_SUFFIXES, Images, Video, format_of
from halftone.options import ApiKey, Json, Local, Url, connected
from halftone.wire import parse_size
from jobs.errors import InvalidRequest


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; its suffix is the format.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id [default: the service's].")] = None,
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="A profile, or auto [default: float].")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="With auto: at least so many dB to float's picture.")] = None,
    deadline: Annotated[float | None, typer.Option(help="With auto: about so many seconds at most.")] = None,
    max_memory: Annotated[int | None, typer.Option(help="With auto: weights of so many bytes at most.")] = None,
    negative: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT [default: the model's].")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [default: the model's].")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale [default: the model's].")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same picture [default: random].")] = None,
    count: Annotated[int | None, typer.Option("--n", "-n", help="How many pictures; picture i has seed + i.")] = None,
    video: Annotated[bool, typer.Option("--video", help="Make a video.")] = False,
    frames: Annotated[int | None, typer.Option(help="Frames of a video [default: the model's].")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second of a video [default: the model's].")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of a video, instead of its frames.")] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="png, webp or jpeg; for a video mp4, webm, webp, gif or frames.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    local: Local = False,
    json: Json = False,
) -> None:
    """Make pictures, or a video, of a prompt and save them."""
    if not video:
        _refuse_frames({"frames": frames, "fps": fps, "seconds": seconds})
    fields: dict[str, Any] = {
        "kind": "video" if video else "image",
        "num_frames": frames,
        "fps": fps,
        "seconds": seconds,
        "model": model,
        "profile": profile,
        "quality": None if min_psnr is None else {"min_psnr_db": min_psnr},
        "deadline_seconds": deadline,
        "max_memory_bytes": max_memory,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "n": count,
        "output_format": format_of(output, output_format, VIDEO_FORMATS if video else FORMATS),
        "priority": priority,
    }
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    asked = {name: value for name, value in fields.items() if value is not None}
    require_writable_file(output, "output")
    with steps_shown("denoising") as on_step:
        made = _locally(prompt, asked, on_step) if local else _remotely(prompt, asked, on_step, url, api_key)
    paths = made.save(output or free_name(prompt, made.pictures[0].seed, _suffix(asked["output_format"], video)))
    _tell(made, paths, as_json=json)


def _refuse_frames(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidRequest(f"--{name} is for videos; add --video, or leave it out", param=name)


def _suffix(output_format: str, video: bool) -> str:
    """What files of a format are named by; what no format of ours is, is refused by whoever makes the picture."""
    return (VIDEO_SUFFIXES if video else SUFFIXES).get(output_format, f".{output_format}")


def _locally(prompt: str, asked: dict[str, Any], on_step: Step) -> Images | Video:
    from halftone.local import generate_here

    return generate_here(prompt, asked, on_step)


def _remotely(
    prompt: str, asked: dict[str, Any], on_step: Step, url: str | None, api_key: str | None
) -> Images | Video:
    with connected(url, api_key) as client:
        make = client.generate_video if asked["kind"] == "video" else client.generate
        return make(prompt, on_event=steps_of(on_step), **asked)


def free_name(prompt: str, seed: int, suffix: str) -> Path:
    """A file name of the prompt and the (first) seed, in the current folder, that overwrites nothing.

    Raises:
        InvalidRequest: the name exists, with and without a number up to 999.
    """
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"
    stem = f"{words}-{seed}"
    candidates = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    free = (Path(name + suffix) for name in candidates if not list(Path().glob(f"{name}*{suffix}")))
    found = next(free, None)
    if found is None:
        raise InvalidRequest(
            f"{stem}{suffix} exists, and so do its numbered names; choose one by --output", param="output"
        )
    return found


def _as_json(made: Images | Video, paths: list[Path]) -> dict[str, Any]:
    files = [
        {"path": str(path), "seed": picture.seed, "mime": picture.about.mime, "sha256": picture.about.sha256}
        for path, picture in zip(paths, made.pictures, strict=True)
    ]
    return {
        "job_id": made.job_id,
        "files": files,
        "used": made.used,
        "costs": made.costs,
        "notices": made.notices,
    }


def _tell(made: Images | Video, paths: list[Path], *, as_json: bool) -> None:
    if as_json:
        render.emit_json(_as_json(made, paths))
        return
    for path, picture in zip(paths, made.pictures, strict=True):
        render.emit_line(f"{path}  (seed {picture.seed}, {picture.about.size_bytes} bytes)")
    render.note(render.used_line(made.used))
    if took := render.costs_line(made.costs):
        render.note(took)
    for notice in made.notices:
        render.note(f"note: {notice.message}")
