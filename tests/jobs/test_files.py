"""Result files: whole or absent, found by id only, gone in time, never outside their folder."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from jobs.errors import DiskFull, Expired, NotFound
from jobs.files import ResultStore, token_of
from jobs.job import new_job_id

TOKEN = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results", ttl=100)


def everything(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def test_a_file_is_found_by_its_id(store: ResultStore, tmp_path: Path) -> None:
    job_id = new_job_id()
    file_id, path = store.write(job_id, TOKEN, 0, b"picture", "png")
    assert file_id == f"{job_id}-{TOKEN}-0.png"
    assert path == tmp_path / "results" / job_id[:2] / file_id == store.path_of(file_id)
    with store.open(file_id) as file:
        assert file.read() == b"picture"
    assert token_of(file_id) == TOKEN
    assert path.stat().st_mode & 0o077 == 0
    store.write(job_id, TOKEN, 0, b"again", "png")
    assert path.read_bytes() == b"again"
    assert everything(tmp_path) == [path]


TRICKS = [
    "",
    ".",
    "..",
    "../secret.png",
    "/etc/passwd",
    "a" * 33,
    f"{'a' * 32}-{TOKEN}-0.png/../../../secret.png",
    f"../{'a' * 32}-{TOKEN}-0.png",
    f"{'A' * 32}-{TOKEN}-0.png",
    f"{'a' * 32}-{TOKEN}-0.png\n",
    f"{'a' * 32}-{TOKEN}-0.png\0",
    f"{'a' * 32}-{TOKEN}-0.svg",
    f"{'a' * 32}-{TOKEN}-٣.png",
    f"{'a' * 32}-{TOKEN}-000.png",
    f"{'a' * 31}／-{TOKEN}-0.png",
    "%2e%2e%2fsecret.png",
    "..\\secret.png",
    "x" * 100_000,
]


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_no_id_leads_outside(store: ResultStore, tmp_path: Path, trick: str) -> None:
    (tmp_path / "secret.png").write_text("secret")
    store.write("a" * 32, "f" * 16, 0, b"x", "png")
    for look in (store.path_of, store.open):
        with pytest.raises(NotFound):
            look(trick)
    with pytest.raises(NotFound):
        store.write(trick, TOKEN, 0, b"x", "png")
    with pytest.raises(NotFound):
        store.discard("a" * 32, trick)
    with pytest.raises(NotFound):
        store.write("a" * 32, TOKEN, 0, b"x", trick)


def test_links_and_folders_are_not_files(store: ResultStore, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("secret")
    _, real = store.write("a" * 32, TOKEN, 0, b"x", "png")
    link = real.with_name(f"{'a' * 32}-{TOKEN}-1.png")
    link.symlink_to(tmp_path / "secret.png")
    real.with_name(f"{'a' * 32}-{TOKEN}-2.png").mkdir()
    os.mkfifo(real.with_name(f"{'a' * 32}-{TOKEN}-3.png"))
    for index in (1, 2, 3, 4):
        with pytest.raises(NotFound):
            store.path_of(f"{'a' * 32}-{TOKEN}-{index}.png")
    folder = tmp_path / "elsewhere"
    real.parent.rename(folder)
    real.parent.symlink_to(folder)
    with pytest.raises(NotFound):
        store.path_of(real.name)


def test_files_expire_and_are_swept(store: ResultStore, tmp_path: Path) -> None:
    old, old_path = store.write("a" * 32, TOKEN, 0, b"x", "png")
    fresh, fresh_path = store.write("b" * 32, TOKEN, 0, b"x", "webp")
    (fresh_path.parent / ".new-interrupted").write_bytes(b"half")
    now = time.time()
    os.utime(old_path, (now - 106, now - 106))
    with pytest.raises(Expired):
        store.path_of(old)
    assert store.sweep(now) == 1
    assert everything(tmp_path) != []
    with pytest.raises(NotFound):
        store.path_of(old)
    assert not old_path.parent.exists()
    assert store.path_of(fresh) == fresh_path
    assert store.sweep(now + 3601) == 2
    assert list((tmp_path / "results").iterdir()) == []


def test_discarding_one_attempt_leaves_the_other(store: ResultStore, tmp_path: Path) -> None:
    job_id = new_job_id()
    for token in (TOKEN, "f" * 16):
        for index in range(3):
            store.write(job_id, token, index, b"x", "jpeg")
    assert store.discard(job_id, TOKEN) == 3
    assert {token_of(path.name) for path in everything(tmp_path)} == {"f" * 16}
    assert store.discard(job_id, TOKEN) == 0
    assert store.discard(new_job_id(), TOKEN) == 0


def test_an_interrupted_write_belongs_to_its_attempt(store: ResultStore, tmp_path: Path) -> None:
    job_id = new_job_id()
    _, path = store.write(job_id, "f" * 16, 0, b"x", "png")
    path.with_name(f".new-{job_id}-{TOKEN}-0.png-00ff00ff").write_bytes(b"half")
    assert set(store.attempts(time.time() + 1)) == {(job_id, TOKEN), (job_id, "f" * 16)}
    assert store.discard(job_id, TOKEN) == 1
    assert everything(tmp_path) == [path]


def test_a_failed_write_leaves_nothing(store: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as fault:
        store.write(new_job_id(), TOKEN, 0, b"x" * 1000, "png")
    assert fault.value.retry_after is not None
    assert everything(tmp_path) == []


def test_readers_and_sweepers_beside_writers_see_whole_files_only(store: ResultStore) -> None:
    """Writers replace one file with others of different length while it is read, and folders are swept when empty."""
    job_id, stop, seen = new_job_id(), threading.Event(), set()

    def sweep() -> None:
        while not stop.is_set():
            store.sweep(time.time())

    def read() -> None:
        while not stop.is_set():
            try:
                with store.open(f"{job_id}-{TOKEN}-0.png") as file:
                    content = file.read()
                seen.add((len(content), len(set(content))))
            except NotFound:
                seen.add((0, 0))

    threads = [threading.Thread(target=deed) for deed in (sweep, read)]
    for thread in threads:
        thread.start()
    for size in range(1, 50):
        store.write(job_id, TOKEN, 0, bytes([size]) * size * 1000, "png")
        store.discard(job_id, TOKEN if size % 10 == 0 else "e" * 16)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(kinds == 1 and size % 1000 == 0 for size, kinds in seen - {(0, 0)})
    assert len(seen) > 3


def test_the_disk_floor(tmp_path: Path) -> None:
    assert ResultStore(tmp_path / "results", 1).free_bytes() > 0
    ResultStore(tmp_path / "results", 1, floor_bytes=1).check_floor()
    with pytest.raises(DiskFull, match="floor"):
        ResultStore(tmp_path / "results", 1, floor_bytes=2**62).check_floor()
