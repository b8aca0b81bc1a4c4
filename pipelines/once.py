"""Results that are computed once and kept as JSON, so that a killed search goes on where it was. Knows no results."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Once:
    """What was computed before, in a folder.

    Args:
        folder: made when the first result is kept.
        key: equal for two searches exactly when the results of one may be used by the other.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def path(self, name: str) -> Path:
        """Where something of that name lies: of this key and no other."""
        return self._folder / f"{name}-{hashlib.sha256(self._key.encode()).hexdigest()[:20]}"

    def get(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """The kept result, or else what `make` returns, which is kept. A file that cannot be read is logged."""
        file, form = self.path(name).with_suffix(".json"), TypeAdapter(kind)
        if file.is_file():
            try:
                return form.validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                log.warning("%s cannot be read (%s); it is done again", file, error)
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(form.dump_json(found))
        partial.replace(file)
        return found


def digest(told: object) -> str:
    """Twenty hexadecimal digits that stand for what something looks like."""
    return hashlib.sha256(repr(told).encode()).hexdigest()[:20]
