"""`halftone compare`: profiles held against float on the same noise, by a server or in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halftone import render
from halftone.commands.steps import Step, require_writable_file, steps_of, steps_shown
from halftone.options import ApiKey, Json, Local, Url, connected
from halftone.wire import parse_size
from jobs.errors import InvalidRequest, Unavailable
from jobs.quality import ProfileReport, Report, Thresholds

FAILED_STATUS = 3
"""Exit status where a profile failed a threshold."""


def compare(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show; several are compared all.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id [default: the service's].")] = None,
    profiles: Annotated[str | None, typer.Option("--profiles", "-p", help="Comma between [default: all].")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Every prompt is drawn from it; may be repeated [default: one at random].")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT [default: the model's].")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps [default: the model's].")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale [default: the model's].")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video [default: the model's].")] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help=f"A threshold, as min_psnr_db=30: {', '.join(Thresholds.model_fields)}."
        ),
    ] = None,
    temporal: Annotated[bool, typer.Option(help="Compare temporal features too.")] = True,
    html: Annotated[Path | None, typer.Option(help="File for the report as one page with all pictures.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    local: Local = False,
    json: Json = False,
) -> None:
    """Compare profiles with float: the same prompts, seeds and noise. Exits with status 3 where a threshold fails."""
    fields: dict[str, Any] = {
        "model": model,
        "profiles": None if profiles is None else [name.strip() for name in profiles.split(",")],
        "seeds": seed or None,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "num_frames": frames,
        "thresholds": thresholds_of(require or []) or None,
        "temporal": temporal,
    }
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    asked = {name: value for name, value in fields.items() if value is not None}
    require_writable_file(html, "html")
    with steps_shown("comparing") as on_step:
        report, page = (
            _locally(prompts, asked, on_step)
            if local
            else _remotely(prompts, asked, on_step, url, api_key, with_page=html is not None)
        )
    if html is not None:
        html.write_text(page, encoding="utf-8")
    _tell(report, html, as_json=json)
    if any(one.verdict == "failed" for one in report.profiles):
        raise typer.Exit(FAILED_STATUS)


def thresholds_of(pairs: list[str]) -> dict[str, float]:
    """Thresholds by name from NAME=VALUE pairs.

    Raises:
        InvalidRequest: a pair is none, or names no threshold.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in Thresholds.model_fields:
            known = ", ".join(Thresholds.model_fields)
            raise InvalidRequest(f"--require: there is no threshold {name!r}; there are {known}", param="require")
        try:
            found[name] = int(value) if name.endswith("_bytes") else float(value)
        except ValueError:
            raise InvalidRequest(f"--require: {pair!r} must look like min_psnr_db=30", param="require") from None
    return found


def _locally(prompts: list[str], asked: dict[str, Any], on_step: Step) -> tuple[Report, str]:
    from halftone.local_compare import compare_here

    made = compare_here(prompts, asked, on_step)
    return made.report, made.page


def _remotely(
    prompts: list[str], asked: dict[str, Any], on_step: Step, url: str | None, api_key: str | None, *, with_page: bool
) -> tuple[Report, str]:
    with connected(url, api_key) as client:
        found = client.compare(prompts, on_event=steps_of(on_step), **asked)
        if found.report is None:
            raise Unavailable(f"comparison {found.id} has no report")
        page = client.report_page(found.id) if with_page else ""
    return Report.model_validate(found.report), page


COLUMNS = (
    *("profile", "verdict", "PSNR dB", "identical", "SSIM", "MS-SSIM", "latent error %", "trajectory %"),
    *("temporal cosine", "mismatch %", "prompts right %", "seconds", "times float's speed", "weights MB", "peak MB"),
)


def row(one: ProfileReport) -> list[str]:
    """A profile's cells under COLUMNS."""
    return [
        one.profile,
        one.verdict,
        render.or_dash(one.psnr_db, ".2f"),
        f"{one.identical} of {len(one.pictures)}",
        f"{one.ssim:.4f}",
        f"{one.ms_ssim:.4f}",
        f"{100 * one.latent_error:.2f}",
        f"{100 * one.trajectory_distance:.2f}",
        render.or_dash(one.temporal_cosine_worst, ".5f"),
        render.or_dash(one.mismatch_rate, ".1f", 100),
        render.or_dash(one.prompt_accuracy, ".0f", 100),
        f"{one.spent.seconds:.3g}",
        f"{one.speedup:.2f}",
        f"{one.spent.weights_bytes / 1e6:.1f}",
        f"{one.spent.peak_bytes / 1e6:.0f}",
    ]


def _tell(report: Report, page: Path | None, *, as_json: bool) -> None:
    if as_json:
        render.emit_json(report)
        return
    render.emit_table(COLUMNS, map(row, report.profiles))
    for one in report.profiles:
        for reason in one.reasons:
            render.note(f"{one.profile}: {reason}")
    for name, why in report.not_measured.items():
        render.note(f"not measured: {name}: {why}")
    for notice in report.notices:
        render.note(f"note: {notice.message}")
    if page is not None:
        render.note(str(page))
