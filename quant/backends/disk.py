"""A bound on files of compiled code: what was used least recently goes. Must not know what they hold."""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CACHE_BYTES = 20 << 30
"""What compiled code may take on disk unless said otherwise."""

ABANDONED_SECONDS = 24 * 3600.0
"""After so long nobody writes compiled code any more."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Thing:
    """Files that go together: those of one folder that differ only in what follows the dot."""

    files: list[Path] = field(default_factory=list)
    bytes: int = 0
    used: float = 0.0


def mark_used(path: Path) -> None:
    """Notes that a file is used now, whatever the file system notes of itself."""
    with suppress(FileNotFoundError):
        os.utime(path)


def keep_within(folder: Path, most_bytes: int) -> list[Path]:
    """Removes things, the least recently used first, until the rest take `most_bytes` or one is left; what was removed.

    Files and folders whose names begin with a dot are being written, and stay for a day: older ones belonged to a
    process that was killed. Several processes may do this at once, and others may use the files: an open or mapped one
    lives on until it is let go.
    """
    _remove_abandoned(folder)
    things = sorted(_things(folder).values(), key=lambda thing: thing.used)
    total, gone = sum(thing.bytes for thing in things), list[Path]()
    for thing in things[:-1]:
        if total <= most_bytes:
            break
        total -= thing.bytes
        for path in sorted(thing.files):
            path.unlink(missing_ok=True)
            gone.append(path)
    if gone:
        _log.info("removed %d files of compiled code, used least recently, from %s", len(gone), folder)
    return gone


def _remove_abandoned(folder: Path) -> None:
    for root, folders, _ in os.walk(folder):  # which bears with folders that vanish meanwhile
        for path in (Path(root) / name for name in folders if name.startswith(".")):
            with suppress(FileNotFoundError):  # another process removed it, or has finished it
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                    _log.info("removed what a killed process left: %s", path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _things(folder: Path) -> dict[Path, _Thing]:
    found: dict[Path, _Thing] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root) / name for name in names if not name.startswith(".")):
            with suppress(FileNotFoundError):  # another process removed it
                about = path.stat()
                thing = found.setdefault(path.with_suffix(""), _Thing())
                thing.files.append(path)
                thing.bytes += about.st_size
                thing.used = max(thing.used, about.st_mtime, about.st_atime)
    return found
