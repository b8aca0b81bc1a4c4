"""`halftone guard`: what the quality guard thinks of each profile, and an operator's word against it. Knows no HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from halftone import render
from halftone.options import ApiKey, Json, Url, connected
from halftone.views import GuardCardView

guard = typer.Typer(no_args_is_help=True, help="Show the quality guard's verdicts, and lift them.")

COLUMNS = ("model", "profile", "verdict", "comparisons", "PSNR dB", "at build", "why")


def row(card: GuardCardView) -> list[str]:
    """A profile's cells under COLUMNS."""
    mean = render.or_dash(card.psnr_db.mean, ".1f")
    if card.psnr_db.low is not None and card.psnr_db.high is not None:
        mean += f" ({card.psnr_db.low:.1f} to {card.psnr_db.high:.1f})"
    build = render.or_dash(None if card.build is None else card.build.psnr_db, ".1f")
    verdict = card.verdict if card.current else f"{card.verdict}, of an older build"
    return [card.model, card.profile, verdict, str(card.comparisons), mean, build, card.reason]


@guard.command()
def show(url: Url = None, api_key: ApiKey = None, json: Json = False) -> None:
    """Show every profile that was compared with float on users' jobs."""
    with connected(url, api_key) as client:
        found = client.guard()
    if json:
        render.emit_json(found)
        return
    render.emit_table(COLUMNS, map(row, found.data))
    render.note(f"A failed profile: {found.action}. Evidence that fails one: {found.failed_at:g}.")


@guard.command()
def lift(
    model: Annotated[str, typer.Argument(help="A model's id.")],
    profile: Annotated[str, typer.Argument(help="The profile's name.")],
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Take a verdict back: the profile counts as healthy until new evidence says otherwise."""
    with connected(url, api_key) as client:
        found = client.lift(model, profile)
    if json:
        render.emit_json(found)
    else:
        render.emit_line(f"{found.profile} of {found.model} is {found.verdict}: {found.reason}")
