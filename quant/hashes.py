"""SHA-256 of files, and a memory of it for files that have not changed since. Must not know what the files hold.

A file is taken for unchanged as long as its device, inode, size, and both times are what they were: what Git's index
goes by. Gigabytes of float weights, of which only the identity matters, are so read once and not at every start.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from quant.errors import ArtifactError

MOST: Final = 1000
"""Files that are remembered; the oldest go first."""

SETTLED_SECONDS: Final = 2.0
"""A file that changed so shortly before it was read is not remembered: it could change again within one tick."""


class _Remembered(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int = 1
    sha256: dict[str, str] = {}


class Hashes:
    """What the hashes of files were, kept in one file; without one, everything is read each time."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def of(self, file: Path) -> str:
        """The hex digest of a file's content.

        Raises:
            OSError: it cannot be read.
        """
        with file.open("rb") as opened:
            before = os.fstat(opened.fileno())
            known = self._read().sha256.get(_identity(before))
            if known is not None:
                return known
            found = hashlib.file_digest(opened, "sha256").hexdigest()
            after = os.fstat(opened.fileno())
        changed = max(after.st_mtime, after.st_ctime)
        if _identity(before) == _identity(after) and time.time() - changed > SETTLED_SECONDS:
            self._keep(_identity(after), found)
        return found

    def _read(self) -> _Remembered:
        if self._path is None:
            return _Remembered()
        try:
            found = _Remembered.model_validate(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError):  # a memory that cannot be read is no memory
            return _Remembered()
        return found if found.format == 1 else _Remembered()

    def _keep(self, identity: str, digest: str) -> None:
        """Adds one; of two processes that do so at once, one's may be lost, and is read again another time."""
        if self._path is None:
            return
        with self._lock, suppress(OSError):  # a full or read-only disk costs time, not the answer
            known: dict[str, Any] = self._read().sha256 | {identity: digest}
            newest = _Remembered(sha256=dict(list(known.items())[-MOST:]))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f".{self._path.name}-{os.getpid()}-{threading.get_ident()}")
            try:
                partial.write_text(newest.model_dump_json(indent=1), encoding="utf-8")
                partial.replace(self._path)
            finally:
                partial.unlink(missing_ok=True)


def sha256_of(paths: Sequence[Path], hashes: Hashes | None = None) -> str:
    """One hex digest over the names and contents of files, in the order given.

    Raises:
        ArtifactError: a file cannot be read.
    """
    hashes = hashes or Hashes()
    total = hashlib.sha256()
    try:
        for path in paths:
            total.update(f"{path.name}:{hashes.of(path)}\n".encode())
    except OSError as error:
        raise ArtifactError(f"cannot read {error.filename}: {error.strerror}") from error
    return total.hexdigest()


def _identity(about: os.stat_result) -> str:
    return f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}"
