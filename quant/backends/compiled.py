"""Compiled graphs on disk: written whole, and read by mapping them. Must not know what is compiled, or when.

OpenVINO's own cache reads all weights of a graph to find what it had compiled of it: as many bytes again in memory. A
file that is found by its name needs none of that.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from quant.backends import disk, runtime

SWEPT_EVERY: Final = 0.05
"""Seconds."""

_log = logging.getLogger(__name__)


def write(compiled: Any, path: Path) -> bool:
    """Keeps a compiled graph as `path`, whole or not at all; whether there was room for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".compiling-", dir=path.parent) as partial:
            fresh = Path(partial) / path.name
            with fresh.open("wb") as file:
                file.write(compiled.export_model().getbuffer())
                file.flush()
                os.fsync(file.fileno())
                _forget(file.fileno())
            fresh.replace(path)
    except OSError as error:
        _log.warning("compiled code is not kept: %s: %s", path, error.strerror)
        return False
    return True


def _forget(descriptor: int) -> None:
    """Has the system drop what it keeps of a file that was written: in pieces of 2 MB, each of which whoever maps the
    file is charged with whole for a scale of four bytes. What is read back comes in small ones.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path, properties: Mapping[str, Any]) -> tuple[Any, mmap.mmap] | None:
    """A compiled graph and the map of its file, which must live as long as it; None where there is none of use."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # OpenVINO wants what it might write to
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        _log.warning("compiled code cannot be read, and is compiled again: %s: %s", path, error)
        return None
    disk.mark_used(path)
    tensor = runtime.openvino.Tensor(np.frombuffer(mapped, np.uint8), shared_memory=True)
    try:
        with _kept_small(mapped):
            compiled = runtime.core().import_model(tensor, "CPU", dict(properties))
    except RuntimeError as error:
        _log.warning("compiled code cannot be read, and is compiled again: %s: %s", path, error)
        return None
    return compiled, mapped


@contextmanager
def _kept_small(mapped: mmap.mmap) -> Iterator[None]:
    """While and after a file's weights are packed elsewhere, lets go of what was read of it every now and then: else it
    would all lie in memory beside them. What is wanted again is read again; nothing is ever written there.
    """
    done = threading.Event()

    def sweep() -> None:
        while not done.wait(SWEPT_EVERY):
            mapped.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=sweep, name="sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        mapped.madvise(mmap.MADV_DONTNEED)
