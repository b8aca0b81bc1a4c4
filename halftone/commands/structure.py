"""`halftone inspect` and `halftone plan`: what of a model time decides, and what memory it takes. Reads no weights.

Heavy imports happen inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from halftone import render
from halftone.commands.offline import ModelArgument
from halftone.commands.steps import progress_of
from halftone.options import Json
from jobs.errors import InvalidRequest, UnknownModel

if TYPE_CHECKING:
    from torch import nn

    from pipelines.memory_plan import Format, MemoryPlan
    from pipelines.structure import ModuleRow, Structure
    from quant.recipe import Storage as Kept
    from quant.temporal.discover import Discovery


class Storage(StrEnum):
    """How tables may be stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"


def inspect(
    model: ModelArgument,
    each: Annotated[bool, typer.Option("--each", help="One line for each module, not for each kind.")] = False,
    json: Json = False,
) -> None:
    """Show which modules of a model's denoiser only time decides, and the tables that can replace them."""
    from pipelines.structure import grouped, structure_of

    found = structure_of(*_of_folder(model))
    if json:
        render.emit_json({"model": model, **asdict(found)})
        return
    rows = found.modules if each else grouped(found.modules)
    render.emit_table(INSPECT_COLUMNS, [_inspect_row(row) for row in rows])
    for line in _inspect_summary(found):
        render.note(line)


def plan(
    model: Annotated[
        str | None, typer.Argument(help="A model's id or diffusers folder, or a public model's name (see --list).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps that tables are made for.")] = 50,
    storage: Annotated[Storage, typer.Option(help="How tables are stored.")] = Storage.FLOAT32,
    known: Annotated[bool, typer.Option("--list", help="List the public models whose sizes are known.")] = False,
    json: Json = False,
) -> None:
    """Show what memory a denoiser takes by part and number format, with and without tables. Downloads nothing."""
    if known:
        _list_public(as_json=json)
        return
    if model is None:
        raise InvalidRequest("name a model, or ask for the names by --list", param="model")
    from pipelines.memory_plan import plan_memory

    made = plan_memory(*_of_name(model), steps=steps, storage=storage.value)
    if json:
        render.emit_json({"model": model, **asdict(made)})
        return
    render.emit_table(PLAN_COLUMNS, _plan_rows(made))
    for line in _plan_summary(made):
        render.note(line)


def _list_public(*, as_json: bool) -> None:
    from pipelines.sizes import PUBLIC

    rows = [{"name": name, "source": public.source, "kind": public.kind} for name, public in PUBLIC.items()]
    if as_json:
        render.emit_json(rows)
    else:
        render.emit_table(("name", "source", "denoiser"), [list(row.values()) for row in rows])


def _of_name(model: str) -> tuple[nn.Module, Discovery]:
    """A public model by its name, or else a model of this machine.

    Raises:
        UnknownModel: neither; the message lists both.
    """
    from pipelines.sizes import PUBLIC
    from pipelines.structure import examine_public

    if model in PUBLIC:
        return examine_public(model)
    try:
        return _of_folder(model)
    except UnknownModel as fault:
        raise UnknownModel(f"{fault.message}; public models: {', '.join(PUBLIC)}", param="model") from fault


def _of_folder(model: str) -> tuple[nn.Module, Discovery]:
    from halftone.build import find_model
    from pipelines.load import quiet
    from pipelines.structure import examine_folder
    from workers.settings import WorkerSettings

    quiet()
    with progress_of() as progress:
        found = find_model(model, WorkerSettings.load(), progress)
        return examine_folder(found.folder, found.card.defaults)


INSPECT_COLUMNS = (
    "module",
    "count",
    "kind",
    "class",
    "read by others",
    "parameters",
    "weights MB",
    "float32 KB",
    "bfloat16 KB",
    "int8 KB",
)


def _inspect_row(row: ModuleRow) -> list[str]:
    shown: tuple[Kept, ...] = ("float32", "bfloat16", "int8")
    tables = [f"{row.table[storage] / 1e3:.1f}" if row.table else "-" for storage in shown]
    sizes = [f"{row.parameters:,}", f"{row.bytes / 1e6:.1f}"]
    return [row.name, str(row.count), row.kind, row.category, "yes" if row.frontier else "no", *sizes, *tables]


def _inspect_summary(found: Structure) -> list[str]:
    if found.unknown:
        return [f"Nothing is held for temporal: {found.unknown}"]
    share, table = f"{100 * found.temporal_share:.1f}%", found.table
    return [
        f"{found.kind}: {found.temporal_parameters:,} of {found.parameters:,} parameters ({share}) see time, request "
        "constants or pooled text alone.",
        f"Tables take {table['float32'] / 1e3:.1f} KB a step in float32, {table['int8'] / 1e3:.1f} KB in int8.",
        "E0: one table for all requests. E1: one for each value of the request's constants. E2: one for each text.",
    ]


PLAN_COLUMNS = ("part", "parameters", "float32 MB", "float16 MB", "w8 MB", "w4 MB")


def _plan_rows(made: MemoryPlan) -> list[list[str]]:
    tables = dict.fromkeys(made.total, made.table_bytes)
    rows = [_plan_row(part.name, f"{part.parameters:,}", part.bytes) for part in made.parts]
    rows.append(_plan_row("total", f"{made.parameters:,}", made.total))
    if made.table_bytes:
        rows.append(_plan_row(f"tables of {made.steps} steps in {made.storage}", "", tables))
        rows.append(_plan_row("total with tables", "", made.resident))
    if any(made.per_request.values()):
        rows.append(_plan_row("  without weights for new texts", "", made.lean))
    return rows


def _plan_row(name: str, parameters: str, sizes: Mapping[Format, int]) -> list[str]:
    return [name, parameters, *(f"{size / 1e6:,.1f}" for size in sizes.values())]


def _plan_summary(made: MemoryPlan) -> list[str]:
    if made.unknown:
        return [f"Nothing is held for temporal: {made.unknown}"]
    saved = 100 * (1 - made.lean["w8"] / max(1, made.total["w8"]))
    return [f"Tables in the place of what time decides save {saved:.1f}% at w8."]
