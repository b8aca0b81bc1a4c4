"""Rivals side by side: opened, warmed up, compared with float, timed in turns, and drawn with. Must not know tables."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor

import quant
from bench.cpu_cells import ANCHOR, Size, built
from bench.rivals import rival
from bench.rivals.ours import Ours
from bench.rivals.process import Process, RivalFailed
from bench.subjects import Picture, Subject
from bench.table import Found, Kept

NEARNESS_CALLS: Final = 5
SLOW: Final = 3.0
"""A rival whose call takes so many times ours draws one picture only."""


def heats_of(rivals: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Rivals in parts of at most `at_once`, ours that anchors them last in each."""
    others, anchors = [one for one in rivals if one != ANCHOR], [one for one in rivals if one == ANCHOR]
    room = max(1, at_once - len(anchors))
    for start in range(0, max(1, len(others)), room):
        yield [*others[start : start + room], *anchors]


def run_heat(about: Subject, heat: Sequence[str], size: Size, kept: Kept) -> Found:
    """Rows of the rivals of one heat; one that fails has the reason in its row, and the others go on."""
    rows: dict[str, Found] = {one: {"rival": one, "note": rival(one).note} for one in heat}
    before = os.getloadavg()
    with ExitStack() as stack:
        open_ones: dict[str, Process] = {}
        for one in heat:
            try:
                rows[one]["build_seconds"] = built(one, about, size, kept)
                process = stack.enter_context(Process(one, about.name, size.root, size.cores))
                rows[one] |= _opened(process, about, size)
                open_ones[one] = process
            except RivalFailed as error:
                rows[one]["failed"] = str(error)
        _rounds(open_ones, rows, about, size)
        if isinstance(about, Picture) and size.pictures:
            rows |= _pictures(open_ones, rows, about, size)
        for one, process in open_ones.items():
            rows[one] |= asked(process, rows[one], "weigh")
    return {"load": [before, os.getloadavg()], "rows": list(rows.values())}


def _opened(process: Process, about: Subject, size: Size) -> Found:
    """Opens a rival, warms it up, and finds how far its answers are from the float model's."""
    seconds = process.ask("open")["seconds"]
    test, errors = about.test(), []
    first = process.ask("run", call=0)["seconds"]
    for _ in range(size.warm - 1):
        process.ask("run", call=0)
    answer = size.root / f"{process.rival}-answer.safetensors"
    for number in range(0, len(test), max(1, len(test) // NEARNESS_CALLS)):
        process.ask("run", call=number, keep=str(answer))
        errors.append(quant.relative_error(load_file(answer)["answer"], test[number].answer))
    answer.unlink(missing_ok=True)
    return {"open_seconds": seconds, "first_call_seconds": first, "call_error": statistics.fmean(errors)}


def _rounds(open_ones: Mapping[str, Process], rows: dict[str, Found], about: Subject, size: Size) -> None:
    """Times a call of each in turn, round after round."""
    count = len(about.test())
    for number in range(size.rounds):
        for one, process in open_ones.items():
            took = asked(process, rows[one], "run", call=number % count)
            if took:
                rows[one].setdefault("call_seconds", []).append(took["seconds"])


def asked(process: Process, row: Found, order: str, **arguments: Any) -> Found:
    """What a rival answers; nothing if it failed before, or now, of which its row then has the reason."""
    if "failed" in row:
        return {}
    try:
        return process.ask(order, **arguments)
    except RivalFailed as error:
        row["failed"] = str(error)
        return {}


def _pictures(open_ones: Mapping[str, Process], rows: dict[str, Found], about: Picture, size: Size) -> dict[str, Found]:
    """Draws pictures by each in turn; ours also by its guidance plan, which is a row of its own."""
    alive = {one: process for one, process in open_ones.items() if "failed" not in rows[one]}
    ours = statistics.median(rows[ANCHOR]["call_seconds"]) if ANCHOR in alive else 0.0
    truth, kept = about.latents(), about.root / "drawn.safetensors"
    drawn: dict[str, Found] = {}
    for number in range(-1, size.pictures):
        for one, process in alive.items():
            slow = ours > 0 and statistics.median(rows[one]["call_seconds"]) > SLOW * ours
            for planned in (False, True) if isinstance(rival(one), Ours) else (False,):
                warm_up = number < 0
                if (warm_up and not planned) or (slow and number > 0) or "failed" in rows[one]:
                    continue  # only a plan brings a kind of call that no round has had
                try:
                    took = process.ask("draw", planned=planned, keep=str(kept))
                except RivalFailed as error:
                    drawn.setdefault(_row_name(one, planned), {})["picture_failed"] = str(error)
                    continue
                if not warm_up:
                    _note(drawn.setdefault(_row_name(one, planned), {}), took, load_file(kept)["latents"], truth)
    kept.unlink(missing_ok=True)
    told = {one: rows[one] | found for one, found in drawn.items() if one in rows}
    return told | {
        one: {"rival": one.partition(" ")[0], "planned": True, "note": "with its guidance plan", **found}
        for one, found in drawn.items()
        if one not in rows
    }


def _row_name(one: str, planned: bool) -> str:
    return f"{one} + plan" if planned else one


def _note(row: Found, took: Found, latents: Tensor, truth: Tensor) -> None:
    row.setdefault("picture_seconds", []).append(took["seconds"])
    row.setdefault("denoiser_seconds", []).append(took["denoiser_seconds"])
    row |= {"picture_rows": took["rows"], "picture_error": quant.relative_error(latents, truth)}
