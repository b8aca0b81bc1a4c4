"""The command line: which commands there are, and the short ones; the others lie in commands/. Imports no torch."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Annotated

import typer

from halftone import render
from halftone.commands import offline, structure
from halftone.commands.compare import compare
from halftone.commands.generate import generate
from halftone.commands.guard import guard
from halftone.commands.jobs import jobs
from halftone.commands.profiles import profiles
from halftone.commands.tune import tune
from halftone.options import ApiKey, FaultsAsMessages, Json, Local, Url, connected
from halftone.version import __version__

app = typer.Typer(
    cls=FaultsAsMessages,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Halftone: image and video generation in which every request chooses how hard the model is compressed.",
)


def _show_version(value: bool) -> None:
    if value:
        render.emit_line(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Halftone: image and video generation in which every request chooses how hard the model is compressed."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one [default: 8000].")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of everything kept [default: see HALFTONE_DATA].")] = None,
    redis_url: Annotated[str | None, typer.Option(help="A Redis to use instead of starting one.")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="A diffusers folder to serve; may be repeated.")] = None,
) -> None:
    """Serve: Redis if need be, the gateway and one worker, until Ctrl-C. Every HALFTONE_* variable is heeded."""
    from halftone.serve import Plan
    from halftone.serve import serve as run

    raise typer.Exit(run(Plan(host, port, data, redis_url, tuple(model or ()))))


app.command()(generate)
app.command()(compare)


@app.command()
def models(url: Url = None, api_key: ApiKey = None, local: Local = False, json: Json = False) -> None:
    """List the models and what they take."""
    if local:
        from halftone.local import known_models

        found = known_models()
    else:
        with connected(url, api_key) as client:
            found = client.models()
    if json:
        render.emit_json(found)
    else:
        render.emit_table(render.MODEL_COLUMNS, map(render.model_row, found))


app.command()(profiles)
app.add_typer(jobs, name="jobs")
app.add_typer(guard, name="guard")
app.command()(offline.quantize)
app.command()(offline.evaluate)
app.command()(tune)
app.command()(offline.pull)
app.command()(structure.inspect)
app.command()(structure.plan)


@app.command()
def key(json: Json = False) -> None:
    """Make an API key. The service is told its hash only; the key itself is shown once."""
    made = secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    if json:
        render.emit_json({"key": made, "sha256": digest})
        return
    render.emit_line(f"key     {made}")
    render.emit_line(f"sha256  {digest}")
    render.note(
        "Serve with HALFTONE_API_KEY_HASHES=<sha256> (several: comma between); call with HALFTONE_API_KEY=<key>."
    )
