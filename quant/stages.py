"""Finished pieces of a long build on disk, so that a killed build goes on where it was. Knows no layers, only tensors.

One safetensors file per stage. A stage is written beside its place and renamed, so a file is whole or not there. Each
carries the build's key, which says what the build was made of: a file with another key is not taken.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


class Stages:
    """The finished stages of one build.

    Args:
        folder: where they lie; None keeps nothing. Made when the first is saved.
        key: equal for two builds exactly when the stages of one may be used by the other.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key
        self._seconds: dict[str, float] = {}
        self._loaded: set[str] = set()

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a finished stage; None if it is to be done. A broken or foreign file is told to the log."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as stored:
                told = stored.metadata() or {}
                if told.get("key") != self._key:
                    log.warning("%s belongs to another build; the stage is done again", path)
                    return None
                tensors = {entry: stored.get_tensor(entry) for entry in stored.keys()}  # noqa: SIM118
                self._seconds[name] = float(told["seconds"])
                self._loaded.add(name)
                return tensors
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s); the stage is done again", path, error)
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor], seconds: float) -> None:
        """Keeps a finished stage and how long it took."""
        self._seconds[name] = seconds
        self._loaded.discard(name)  # one that was read and not taken is done again
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {entry: tensor.detach().cpu().contiguous() for entry, tensor in tensors.items()}
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(whole, unfinished, metadata={"key": self._key, "seconds": repr(seconds)})
        unfinished.replace(path)

    def seconds(self, name: str) -> float:
        """How long a stage that was loaded or saved here took, in whichever run did it.

        Raises:
            KeyError: it was neither.
        """
        return self._seconds[name]

    @property
    def total_seconds(self) -> float:
        """How long all stages that were loaded or saved here took."""
        return sum(self._seconds.values())

    @property
    def resumed_seconds(self) -> float:
        """How long those took that were loaded here: time that an earlier run spent."""
        return sum(self._seconds[name] for name in self._loaded)

    def discard(self) -> None:
        """Removes all stages: the build is done."""
        if self._folder is not None and self._folder.exists():
            shutil.rmtree(self._folder)

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{quote(name, safe='')}.safetensors"
