"""Rows of a table: made once each, by however many processes."""

from __future__ import annotations

import fcntl
import multiprocessing
from pathlib import Path
from typing import Any

from bench import table
from bench.table import Kept, each_row


def _rows(work: Path, names: list[str], log: Path) -> None:
    table.PAUSE = 0.05
    kept = Kept(work)

    def make(row: str, progress: Any) -> None:
        with log.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{row}\n")
        kept.write(row, {"row": row})

    each_row(kept, names, lambda row: row, lambda row: row[0], make)


def test_processes_share_rows_and_each_returns_when_all_are_there(tmp_path: Path) -> None:
    names, log = [f"{group}{number}" for group in "abc" for number in range(4)], tmp_path / "log"
    Kept(tmp_path).write("b1", {})
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rows, args=(tmp_path, names, log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text(encoding="utf-8").split()) == sorted(set(names) - {"b1"})


def test_nobody_takes_what_another_is_at(tmp_path: Path) -> None:
    first, second = Kept(tmp_path), Kept(tmp_path)
    with first.claim("a") as mine, second.claim("a") as theirs, second.claim("b") as other:
        assert (mine, theirs, other) == (True, False, True)
    with second.claim("a") as mine:
        assert mine
