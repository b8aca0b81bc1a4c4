"""Hashes of files, remembered for those that have not changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from quant.errors import ArtifactError
from quant.hashes import MOST, Hashes, sha256_of


def written(path: Path, content: bytes) -> Path:
    """A file of that content."""
    path.write_bytes(content)
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has whole readings of files counted."""
    digest, found = hashlib.file_digest, list[str]()

    def counting(file: object, kind: str) -> object:
        found.append(kind)
        return digest(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr("quant.hashes.hashlib.file_digest", counting)
    return found


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of this test need not rest before they are remembered; nobody can set back the time of a change."""
    monkeypatch.setattr("quant.hashes.SETTLED_SECONDS", -1.0)


def test_a_file_is_read_once_by_all_who_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reads(monkeypatch)
    file = written(tmp_path / "weights", b"weights")
    memory = tmp_path / "cache" / "hashes.json"
    digests = {Hashes(memory).of(file) for _ in range(3)}
    assert digests == {hashlib.sha256(b"weights").hexdigest()}
    assert len(found) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path / "weights", b"weights")
    hashes = Hashes(tmp_path / "hashes.json")
    hashes.of(file)
    about = file.stat()
    file.write_bytes(b"WEIGHTS")  # as long as before, and said to be as old
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert hashes.of(file) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_without_a_memory_everything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reads(monkeypatch)
    file = written(tmp_path / "weights", b"weights")
    assert sha256_of([file]) == sha256_of([file])
    assert len(found) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.hashes.SETTLED_SECONDS", 3600.0)
    Hashes(tmp_path / "hashes.json").of(written(tmp_path / "weights", b"weights"))
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"format": 2, "sha256": {}}', '{"sha256": {"a": 1}}'])
def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    memory = tmp_path / "hashes.json"
    memory.write_text(content, encoding="utf-8")
    file = written(tmp_path / "weights", b"weights")
    assert Hashes(memory).of(file) == hashlib.sha256(b"weights").hexdigest()
    assert str(file.stat().st_ino) in memory.read_text(encoding="utf-8")


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "cache" / "hashes.json").mkdir(parents=True)
    file = written(tmp_path / "weights", b"weights")
    assert Hashes(tmp_path / "cache" / "hashes.json").of(file) == hashlib.sha256(b"weights").hexdigest()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hashes.json"]


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.hashes.MOST", 2)
    assert MOST > 2
    found, hashes = reads(monkeypatch), Hashes(tmp_path / "hashes.json")
    files = [written(tmp_path / name, name.encode()) for name in "abc"]
    for file in [*files, files[2], files[1], files[0]]:
        hashes.of(file)
    assert len(found) == 4


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*weights: No such file"):
        sha256_of([tmp_path / "weights"], Hashes(tmp_path / "hashes.json"))
