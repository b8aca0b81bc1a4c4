"""Result files on disk: written whole or not at all, found by id only, gone after their time. Knows no job and no HTTP.

A file's id is `{job id}-{token}-{index}.{ext}`; it lies at `{results}/{first two of job id}/{file id}`. Two
attempts at a job never share a name, so that a fenced one can delete its own files and no others.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jobs.errors import DiskFull, Expired, NotFound
from jobs.settings import Settings

_ATTEMPT = re.compile(r"(?:\.new-)?([0-9a-f]{32})-([0-9a-f]{16})-", re.ASCII)
_FILE_ID = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-([0-9]{1,3})\.(png|webp|jpeg|mp4|webm|gif|zip|json)", re.ASCII)
_TEMPORARY = ".new-"
_TEMPORARY_SECONDS = 3600.0
_GRACE_SECONDS = 5.0
"""Files are older than the record that promises how long they live: they are written before the job is settled."""

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is being written: the id that it will have, and where it lies until then."""

    id: str
    path: Path


class ResultStore:
    """The results folder. All methods block on the disk: call them from a thread in an event loop.

    `ttl` is how many seconds a file lives; `floor_bytes` how much free space `check_floor` asks for.
    """

    def __init__(self, results_dir: Path, ttl: float, floor_bytes: int = 0) -> None:
        self._root = results_dir
        self._ttl = ttl
        self._floor = floor_bytes

    @classmethod
    def of(cls, settings: Settings) -> ResultStore:
        """The store that the settings describe."""
        return cls(settings.results_dir, settings.result_ttl_seconds, settings.disk_floor_bytes)

    def write(self, job_id: str, token: str, index: int, data: bytes, ext: str) -> tuple[str, Path]:
        """Store a file's bytes; its id and path. When this returns, the file is whole, in place, and on disk.

        Raises `DiskFull` when there is no space (nothing is left behind then), `NotFound` for parts that make no id.
        """
        with self.writing(job_id, token, index, ext) as new:
            new.path.write_bytes(data)
        return new.id, self._folder(job_id) / new.id

    @contextmanager
    def writing(self, job_id: str, token: str, index: int, ext: str) -> Iterator[NewFile]:
        """A file to be written by the block, by its path, in as many pieces as it likes.

        Until the block ends nobody finds it by its id; then it is whole, in place, and on disk. A block that raises
        leaves nothing behind. Raises as `write` does.
        """
        file_id = f"{job_id}-{token}-{index}.{ext}"
        folder = self._folder(_parse(file_id)[0])
        temporary = folder / f"{_TEMPORARY}{file_id}-{secrets.token_hex(4)}"
        try:
            is_new = _create(temporary)
            try:
                yield NewFile(file_id, temporary)
                _sync(temporary)
                temporary.replace(folder / file_id)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            for changed in (folder, self._root) if is_new else (folder,):
                _sync(changed)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("no space is left for the result", retry_after=60) from error
            raise

    def path_of(self, file_id: str) -> Path:
        """Where a file lies. Raises `NotFound` for what is no id or no file, `Expired` for one past its time."""
        path = self._folder(_parse(file_id)[0]) / file_id
        with self._open(path):
            return path

    def open(self, file_id: str) -> BinaryIO:
        """A file for reading; it stays readable when it is swept meanwhile. Raises as `path_of`."""
        return self._open(self._folder(_parse(file_id)[0]) / file_id)

    def _open(self, path: Path) -> BinaryIO:
        try:
            if path.parent.is_symlink():
                raise _unknown()
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _MISSING:
                raise _unknown() from None
            raise
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode) and not self._is_over(facts, time.time()):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        raise Expired("the file's time is over; make it again") if stat.S_ISREG(facts.st_mode) else _unknown()

    def discard(self, job_id: str, token: str) -> int:
        """Delete the files of one attempt at a job; how many there were."""
        _parse(f"{job_id}-{token}-0.png")
        folder = self._folder(job_id)
        names = (f"{job_id}-{token}-", f"{_TEMPORARY}{job_id}-{token}-")
        doomed = [path for path in _inside(folder) if path.name.startswith(names)]
        for path in doomed:
            path.unlink(missing_ok=True)
        _remove_if_empty(folder)
        return len(doomed)

    def sweep(self, now: float) -> int:
        """Delete what is over at Unix time `now`: expired files, remains of interrupted writes, empty folders."""
        count = 0
        for folder in _inside(self._root):
            count += sum(self._sweep_file(path, now) for path in _inside(folder))
            _remove_if_empty(folder)
        return count

    def _sweep_file(self, path: Path, now: float) -> bool:
        with suppress(FileNotFoundError):
            facts = path.lstat()
            left_over = path.name.startswith(_TEMPORARY) and facts.st_mtime + _TEMPORARY_SECONDS <= now
            if left_over or (_FILE_ID.fullmatch(path.name) and self._is_over(facts, now)):
                path.unlink()
                return True
        return False

    def attempts(self, before: float) -> Iterator[tuple[str, str]]:
        """(job id, token) of each attempt whose newest file, whole or not, was written before Unix time `before`."""
        newest: dict[tuple[str, str], float] = {}
        for path in (path for folder in _inside(self._root) for path in _inside(folder)):
            match = _ATTEMPT.match(path.name)
            if match is not None:
                with suppress(FileNotFoundError):
                    key = (match[1], match[2])
                    newest[key] = max(newest.get(key, 0.0), path.lstat().st_mtime)
        return (key for key, written in newest.items() if written < before)

    def free_bytes(self) -> int:
        """Space left on the disk that holds the results."""
        self._root.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._root).free

    def check_floor(self) -> None:
        """Raises `DiskFull` when less space is free than the operator wants kept."""
        free = self.free_bytes()
        if free < self._floor:
            raise DiskFull(
                f"{free} bytes are free for results and {self._floor} are the floor; free space on {self._root}",
                retry_after=60,
            )

    def _folder(self, job_id: str) -> Path:
        return self._root / job_id[:2]

    def _is_over(self, facts: os.stat_result, now: float) -> bool:
        return facts.st_mtime + self._ttl + _GRACE_SECONDS <= now


def token_of(file_id: str) -> str:
    """The token of the attempt that made a file. Raises `NotFound` for what is no id."""
    return _parse(file_id)[1]


def _parse(file_id: str) -> tuple[str, str]:
    match = _FILE_ID.fullmatch(file_id)
    if match is None:
        raise _unknown()
    return match[1], match[2]


def _unknown() -> NotFound:
    return NotFound("no such file; it may have expired")


def _create(path: Path) -> bool:
    """Makes an empty file; whether its folder is new, too. The folder may be swept away as empty meanwhile."""
    is_new = False
    while True:
        with suppress(FileNotFoundError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            return is_new
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_new = True


def _inside(folder: Path) -> list[Path]:
    """What a folder holds now; nothing when it is gone, or no folder. (`glob` fails when one vanishes meanwhile.)"""
    try:
        return list(folder.iterdir())
    except OSError as error:
        if error.errno in _MISSING:
            return []
        raise


def _sync(path: Path) -> None:
    """Puts a file's bytes, or a folder's names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (*_MISSING, errno.ENOTEMPTY, errno.EEXIST):
            raise
