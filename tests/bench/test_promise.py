"""The table of promises: what counts as kept, and that identical pictures fall short of nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bench import promise
from bench.table import Found


def found(values: Sequence[float | None]) -> Found:
    chosen = {"w8a8": len(values)}
    return {"model": "m", "steps": 25, "promised_db": 40.0, "chosen": chosen, "psnr_db": values}


def cells(values: Sequence[float | None]) -> list[str]:
    facts = {"prompts": 300, "share": promise.SHARE, "allowed": 15}
    machine = {"cores": 2, "processor": "any", "date": "2026-01-01"}
    text = promise.markdown({**facts, "machine": machine}, [found(values)])
    return [cell.strip() for cell in text.strip().splitlines()[-1].strip("|").split("|")]


def test_a_promise_is_kept_while_few_pictures_fall_short() -> None:
    assert promise.allowed(300) == 15
    few, many = cells([39.9] * 15 + [41.0] * 285), cells([39.9] * 16 + [41.0] * 284)
    assert (few[4], few[-1]) == ("15", "yes")
    assert (many[4], many[-1]) == ("16", "no")


def test_identical_pictures_fall_short_of_nothing() -> None:
    told = cells([None] * 20)
    assert (told[4], told[6], told[-1]) == ("0", "inf", "yes")


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in promise.rows()]
    assert len(set(names)) == len(names)
