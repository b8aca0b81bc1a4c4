"""`python -m bench cpu`: one layer, one call of a denoiser, one whole picture, by ours and by every rival there is.

Each rival is a process of its own, and gets the same calls. Rounds go through all rivals in turn, so that what
disturbs the machine disturbs all; medians are told. Where there are more rivals than fit into memory together, they run
in heats, each with ours in it, and are compared with ours of their own heat. Heats are kept under build/bench/: a
stopped run goes on with the next. A run of some subjects leaves results of others as they are (`bench.parts`).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench import cpu_report
from bench.cpu_cells import (
    ANCHOR,
    FULL,
    Size,
    cell_name,
    counted_macs,
    packages,
    peaks_of,
    products_of,
    resolved,
)
from bench.cpu_heats import heats_of, run_heat
from bench.machine import describe
from bench.parts import with_earlier
from bench.rivals import rival
from bench.subjects import subject
from bench.table import Found, Kept
from pipelines.load import quiet


def run(size: Size) -> None:
    """Measures what is not measured yet, and writes tables."""
    quiet()
    size = resolved(size)
    kept = Kept(size.root)
    peaks = peaks_of(size, kept)
    found = [measured(name, size, kept, peaks["int8"]) for name in size.subjects]
    facts: Found = {"machine": describe(), "packages": packages(), "threads": size.cores, "peaks": peaks}
    facts |= {"rounds": size.rounds, "warm": size.warm}
    cpu_report.write("cpu", facts, with_earlier("cpu", facts, found, FULL.subjects))


def measured(name: str, size: Size, kept: Kept, int8_peak: float) -> Found:
    """A subject with the rows of all rivals."""
    about = subject(name, size.root)
    about.prepare()
    gc.collect()
    reasons = {one: why for one in size.rivals if (why := rival(one).why_not()) is not None}
    left_out = {one: "left out of this run" for one in FULL.rivals if one not in size.rivals}
    rows: list[Found] = [{"rival": one, "failed": why} for one, why in (reasons | left_out).items()]
    loads: list[Any] = []
    for number, heat in enumerate(heats_of([one for one in size.rivals if one not in reasons], size.at_once)):
        cell = cell_name("cpu", name, heat, asdict(size), packages())
        done = kept.read(cell)
        if done is None:
            done = run_heat(about, heat, size, kept)
            kept.write(cell, done)
        loads.append(done["load"])
        ours = _ours(done["rows"])
        rows += [row | ours for row in done["rows"] if number == 0 or row["rival"] != ANCHOR]
    order = {one: place for place, one in enumerate(FULL.rivals)}
    rows.sort(key=lambda row: order[row["rival"]])
    told: Found = {"subject": name, "macs": counted_macs(about, kept), "load": loads, "rows": rows}
    return told | {"products": products_of(about, size, kept, int8_peak) if ANCHOR in size.rivals else None}


def _ours(rows: Sequence[Found]) -> Found:
    """What ours took in a heat, for each row to be compared with."""
    own = {bool(row.get("planned")): row for row in rows if row["rival"] == ANCHOR and "failed" not in row}
    plain, planned = own.get(False, {}), own.get(True, {})
    told = {"call_seconds": plain.get("call_seconds"), "picture_seconds": plain.get("picture_seconds")}
    return {"ours": told | {"planned_picture_seconds": planned.get("picture_seconds")}}
