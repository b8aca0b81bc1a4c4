"""`python -m bench memory`: peak memory of a process that draws one picture, bytes on disk, seconds of a cold load.

Each rival is a process of its own, started anew after another has filled its compile cache, and after the system was
asked to drop its cached copies of files. Peak: the system's high-water mark of resident memory over imports, text
encoder, denoiser, all steps, and autoencoder. Rows are kept under build/bench/.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from bench import charts, numbers
from bench.cpu_cells import ANCHOR, Size, built, cell_name, packages, resolved
from bench.machine import describe
from bench.numbers import keep
from bench.parts import with_earlier
from bench.rivals import rival
from bench.rivals.ours import Ours
from bench.rivals.process import Process, RivalFailed
from bench.subjects import Picture, subject
from bench.table import Found, Kept
from pipelines.load import quiet

FULL: Final = Size(subjects=("sd15@32", "pixart@32"))
QUICK: Final = Size(subjects=("small-unet@8",), rivals=("torch-fp32", ANCHOR))
AIMS: Final = {"float32": 0.5, "nncf": 0.85, "w8": 0.27, "w4": 0.16, "load": 5.0}

LOADS: Final = 3
"""Of each rival: a single one says as much of the storage as of the rival."""

HEAD = """# Memory, disk and loading: ours and rivals

Made by `python -m bench memory` on {processor}, {dates}, {threads} threads. Versions: {versions}. Each row is a fresh
process that loads a model of public size with random weights and draws one picture of 25 steps; text encoder and
autoencoder are small. "Before": resident after imports, text encoder and autoencoder. "Load": from opening to ready,
code compiled before read from the cache: opening, plus the first call less a later one; the median of {loads}, all
rivals in turn, each in a fresh process. "Read": what the process that draws had fetched from storage. Disk: the
denoiser's files that it reads.
"""

ROWS: Final = {
    "peak": ("peak, MB", 1e-6),
    "rss_before": ("before, MB", 1e-6),
    "disk": ("disk, MB", 1e-6),
    "load_seconds": ("load, s", 1.0),
    "read": ("read, MB", 1e-6),
    "picture_seconds": ("picture, s", 1.0),
}


def run(size: Size) -> None:
    """Measures what is not measured yet, and writes the table."""
    quiet()
    size = resolved(size)
    kept = Kept(size.root)
    found = [measured(name, size, kept) for name in size.subjects]
    facts: Found = {"machine": describe(), "packages": packages(), "threads": size.cores}
    found = with_earlier("memory", facts, found, FULL.subjects)
    keep("memory", {**facts, "subjects": found}, markdown(facts, found))
    sets = [
        (one["subject"], {name_of(row): row["peak"] / 1e6 for row in one["rows"] if "failed" not in row})
        for one in found
    ]
    charts.bars(sets, "peak memory, MB", numbers.RESULTS / "memory.png")


def measured(name: str, size: Size, kept: Kept) -> Found:
    """A subject with the rows of all rivals; ours also with its guidance plan.

    Raises:
        ValueError: the subject draws no pictures.
    """
    about = subject(name, size.root)
    if not isinstance(about, Picture):
        raise ValueError(f"{name} is a layer: it draws no pictures; name a model with a size, such as sd15@32")
    about.prepare()
    gc.collect()
    rows: list[Found] = []
    for one in size.rivals:
        why = rival(one).why_not()
        if why is not None:
            rows.append({"rival": one, "failed": why})
            continue
        for planned in (False, True) if isinstance(rival(one), Ours) else (False,):
            cell = cell_name("memory", name, [one], {"planned": planned, "threads": size.cores}, packages())
            row = kept.read(cell)
            if row is None:
                row = {"rival": one, "planned": planned, **_row(one, about, size, kept, planned=planned)}
                kept.write(cell, row)
            rows.append(row)
    ready = [row["rival"] for row in rows if "failed" not in row and not row.get("planned")]
    loads = _loads(ready, about, size, kept)
    rows = [row | {"load_seconds": loads[row["rival"]]} if row["rival"] in loads else row for row in rows]
    return {"subject": name, "rows": rows}


def _row(one: str, about: Picture, size: Size, kept: Kept, *, planned: bool) -> Found:
    try:
        built(one, about, size, kept)
        with Process(one, about.name, size.root, size.cores) as process:  # fills its compile cache
            process.ask("open")
            process.ask("run", call=0)
            if planned:
                process.ask("run", call=0, rows=1)
        with Process(one, about.name, size.root, size.cores) as process:
            process.ask("forget")
            opened = process.ask("open")
            drawn = process.ask("draw", planned=planned)
            weighed = process.ask("weigh")
    except RivalFailed as error:
        return {"failed": str(error)}
    return {**weighed, "picture_seconds": drawn["seconds"], "rss_before": opened["rss_before"]}


def _loads(rivals: Sequence[str], about: Picture, size: Size, kept: Kept) -> dict[str, float]:
    """Seconds of a cold load of each rival, whose compile cache is full: the median of several, all rivals in turn."""
    told = {"rounds": LOADS, "threads": size.cores}
    cell = cell_name("loads", about.name, rivals, told, packages())
    found = kept.read(cell)
    if found is None:
        found = {one: list[float]() for one in rivals}
        for _ in range(LOADS):
            for one in rivals:
                found[one].append(_load(one, about, size))
        kept.write(cell, found)
    return {one: statistics.median(seconds) for one, seconds in found.items()}


def _load(one: str, about: Picture, size: Size) -> float:
    with Process(one, about.name, size.root, size.cores) as process:
        process.ask("forget")
        opened = process.ask("open")["seconds"]
        first, later = (process.ask("run", call=0)["seconds"] for _ in range(2))
    return float(opened + max(0.0, first - later))


def name_of(row: Found) -> str:
    """As tables show it."""
    return f"{row['rival']} + plan" if row.get("planned") else str(row["rival"])


def markdown(facts: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    machine, versions = facts["machine"], ", ".join(f"{name} {one}" for name, one in facts["packages"].items())
    dates = ", ".join(sorted({one["date"] for one in found}))
    told = {"processor": machine["processor"], "dates": dates, "threads": facts["threads"]}
    parts = [HEAD.format(**told, versions=versions, loads=LOADS)]
    for one in found:
        titles = ["rival", *(title for title, _ in ROWS.values()), "peak, of float32's", "disk, of float32's"]
        parts += ["", f"## {one['subject']}", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        ran = {name_of(row): row for row in one["rows"] if "failed" not in row}
        parts += [_line(name, row, ran.get("torch-fp32")) for name, row in ran.items()]
        parts += ["", *(f"- {row['rival']} is not here: {row['failed']}" for row in one["rows"] if "failed" in row)]
    return "\n".join([*parts, "", "## Verdict", "", *(told for one in found for told in verdict(one)), ""])


def _line(name: str, row: Found, plain: Found | None) -> str:
    cells = [f"{row[field] * factor:.4g}" for field, (_, factor) in ROWS.items()]
    cells += ["-" if plain is None else f"{row[field] / plain[field]:.3f}" for field in ("peak", "disk")]
    return f"| {' | '.join([name, *cells])} |"


def verdict(one: Found) -> list[str]:
    """The aims, and whether a subject's rows reach them."""
    ran = {name_of(row): row for row in one["rows"] if "failed" not in row}
    planned = f"{ANCHOR} + plan"
    told = []
    for mine in (ANCHOR, planned):
        told += _judge(one, ran, mine, "torch-fp32", "peak", AIMS["float32"])
        nncf = [name for name in ("openvino-nncf-int8", "openvino-nncf-int8-f32") if name in ran]
        told += _judge(one, ran, mine, min(nncf, key=lambda name: ran[name]["peak"], default="-"), "peak", AIMS["nncf"])
    told += _judge(one, ran, ANCHOR, "torch-fp32", "disk", AIMS["w8"])
    told += _judge(one, ran, "tfmq-w4a8", "torch-fp32", "disk", AIMS["w4"])
    if ANCHOR in ran:
        seconds = ran[ANCHOR]["load_seconds"]
        reached = "reached" if seconds <= AIMS["load"] else "not reached"
        told.append(f"- {one['subject']}: {ANCHOR} loads in {seconds:.2f} s (aim {AIMS['load']:g}): {reached}.")
    return told


def _judge(one: Found, ran: Mapping[str, Found], mine: str, other: str, field: str, aim: float) -> list[str]:
    if mine not in ran or other not in ran:
        absent = mine if mine not in ran else "OpenVINO + NNCF" if other == "-" else other
        return [f"- {one['subject']}: {field} of {mine} is not judged, as {absent} did not run."]
    share = ran[mine][field] / ran[other][field]
    reached = "reached" if share <= aim else "not reached"
    return [f"- {one['subject']}: {field} of {mine} is {share:.3f} of {other}'s (aim {aim:g}): {reached}."]
