"""What commands share: bars that move with the work, and files that can be written. Knows no command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from halftone import render
from halftone.wire import Event
from jobs.errors import InvalidRequest

Step = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@contextmanager
def progress_of(first: str = "reading") -> Iterator[Callable[[str, int, int], None]]:
    """A bar that says `first` until it is told (what is being done, how much of it is done, of how much)."""
    with render.progress_bar() as bar:
        task = bar.add_task(first, total=None)

        def on_progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield on_progress


@contextmanager
def steps_shown(what: str) -> Iterator[Step]:
    """A bar that waits for the first step, then says `what` is being done."""
    with progress_of("waiting") as on_progress:
        yield partial(on_progress, what)


def steps_of(on_step: Step) -> Callable[[Event], None]:
    """Hears a job's events and tells its steps."""

    def on_event(event: Event) -> None:
        step, total = event.data.get("step"), event.data.get("total")
        if event.type == "progress" and isinstance(step, int) and isinstance(total, int):
            on_step(step, total)

    return on_event


def require_writable_file(file: Path | None, option: str) -> None:
    """Finds out before the work whether its result can be written, where a file was named at all.

    Raises:
        InvalidRequest: the file may not be written, or is a folder, or its folder is missing or takes no new file.
    """
    if file is None:
        return
    if file.is_dir():
        raise InvalidRequest(f"--{option}: {file} is a folder; name a file", param=option)
    if not file.parent.is_dir():
        raise InvalidRequest(f"--{option}: {file} cannot be written: there is no folder {file.parent}", param=option)
    if not (os.access(file, os.W_OK) if file.exists() else os.access(file.parent, os.W_OK | os.X_OK)):
        raise InvalidRequest(f"--{option}: {file} may not be written", param=option)
