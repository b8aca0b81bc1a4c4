"""Files of compiled code stay within a bound; what was used last stays, and what is being written."""

from __future__ import annotations

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quant.backends.disk import keep_within, mark_used


def lay(folder: Path, name: str, size: int, used: float) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (used, used))
    return path


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    old, middle, new = (lay(tmp_path, f"{name}/g.xml", 10, time) for name, time in (("a", 1), ("b", 2), ("c", 3)))
    assert keep_within(tmp_path, 30) == []
    mark_used(old)
    assert keep_within(tmp_path, 29) == [middle]
    assert old.exists() and new.exists()
    assert keep_within(tmp_path, 0) == [new]
    assert keep_within(tmp_path, 0) == [], "the last one used stays, whatever its size"
    assert old.exists()


def test_a_graph_and_its_constants_go_together(tmp_path: Path) -> None:
    pair = [lay(tmp_path, "a/g.bin", 10, 1), lay(tmp_path, "a/g.xml", 1, 5)]
    other = lay(tmp_path, "a/h.xml", 1, 4)
    assert keep_within(tmp_path, 11) == [other], "a graph was used when either of its files was"
    lay(tmp_path, "a/compiled/1.blob", 5, 9)
    assert keep_within(tmp_path, 11) == pair


def test_what_is_being_written_stays_and_does_not_count(tmp_path: Path) -> None:
    written = lay(tmp_path, "a/.converting-1/model.bin", 100, 1)
    partial = lay(tmp_path, "a/.partial", 100, 1)
    kept = lay(tmp_path, "a/g.xml", 10, 2)
    assert keep_within(tmp_path, 10) == []
    assert written.exists() and partial.exists() and kept.exists()


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    left, written = (lay(tmp_path, f"a/compiled/.compiling-{name}/g.blob", 100, 1) for name in "ab")
    os.utime(left.parent, (1, 1))
    assert keep_within(tmp_path, 10) == []
    assert not left.parent.exists() and written.exists()


def test_folders_of_other_processes_may_vanish_meanwhile(tmp_path: Path) -> None:
    kept, done = lay(tmp_path, "a/compiled/g.blob", 10, 1), threading.Event()

    def write_others() -> None:
        while not done.is_set():
            with tempfile.TemporaryDirectory(prefix=".compiling-", dir=kept.parent) as partial:
                Path(partial, "h.blob").write_bytes(b"")

    with ThreadPoolExecutor() as others:
        running = [others.submit(write_others) for _ in range(3)]
        try:
            for _ in range(300):
                assert keep_within(tmp_path, 10) == []
        finally:
            done.set()
    assert [one.result() for one in running] == [None] * 3 and kept.exists()


def test_nothing_there_is_no_fault(tmp_path: Path) -> None:
    assert keep_within(tmp_path / "none", 0) == []
    mark_used(tmp_path / "none")
