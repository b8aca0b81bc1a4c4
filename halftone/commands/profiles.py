"""`halftone profiles`: what there is to choose from, as a table, as JSON, as a picture of what each costs and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halftone import render
from halftone.options import ApiKey, Json, Local, Url, connected
from halftone.views import ProfileView
from jobs.errors import InvalidRequest, UnknownModel
from jobs.pareto import places

PICTURES = (".png", ".svg")


def profiles(
    url: Url = None,
    api_key: ApiKey = None,
    local: Local = False,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw fidelity against seconds and against bytes: a .png or .svg file.")
    ] = None,
    json: Json = False,
) -> None:
    """List the quantization profiles: size, and fidelity to float where it was measured."""
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise InvalidRequest(f"--plot takes a file that ends in {' or '.join(PICTURES)}, not {plot.name}", param="plot")
    found = _found(url, api_key, local, model)
    if plot is not None:
        _draw(plot, found)
    if json:
        render.emit_json(found)
        return
    render.emit_table(render.PROFILE_COLUMNS, map(render.profile_row, found))
    for line in (line for card in found for line in render.guidance_lines(card) + render.precision_lines(card)):
        render.note(line)
    if plot is not None:
        render.note(str(plot))


def _found(url: str | None, api_key: str | None, local: bool, model: str | None) -> tuple[ProfileView, ...]:
    if local:
        from halftone.local import known_profiles

        found = known_profiles()
    else:
        with connected(url, api_key) as client:
            found = client.profiles()
    if model is None:
        return found
    if all(card.model != model for card in found):
        known = ", ".join(dict.fromkeys(card.model for card in found))
        raise UnknownModel(f"no model {model!r}; known models: {known}", param="model")
    return tuple(card for card in found if card.model == model)


def _draw(file: Path, found: tuple[ProfileView, ...]) -> None:
    """Draws the models of which at least one profile was measured.

    Raises:
        InvalidRequest: there is none.
    """
    by_model = {
        name: places(card for card in found if card.model == name)
        for name in dict.fromkeys(card.model for card in found)
    }
    measured = {name: own for name, own in by_model.items() if len(own) > 1}
    if not measured:
        raise InvalidRequest("there is nothing to plot: no profile was measured against float", param="plot")
    from halftone.profile_plot import plot_profiles

    plot_profiles(file, measured)
