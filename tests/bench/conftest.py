"""A folder with the small model and its calls, made once for all tests of benches that set ours beside rivals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest

from bench.rivals import rival as find_rival
from bench.rivals.child import Child
from bench.rivals.process import RivalFailed
from bench.subjects import Picture
from bench.subjects import subject as find_subject


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where benches keep things: `small-unet@8` is prepared there."""
    folder = tmp_path_factory.mktemp("bench").resolve()
    Picture("small-unet@8", folder).prepare()
    return folder


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go instead of into the repository."""
    monkeypatch.setattr("bench.numbers.RESULTS", tmp_path / "results")
    return tmp_path / "results"


class Local:
    """A rival's process that is none: the same orders and answers in this process, so that nothing is imported anew."""

    def __init__(self, rival: str, subject: str, root: Path, threads: int) -> None:
        self.rival = rival
        self._child = Child(find_rival(rival), find_subject(subject, root), threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Does an order; a fault is told as a process tells it."""
        try:
            found: dict[str, Any] = json.loads(json.dumps(self._child.orders[order](**arguments)))
        except Exception as error:
            raise RivalFailed(f"{order}: {type(error).__name__}: {error}") from error
        return found


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has benches run rivals in this process."""
    for module in ("cpu_cells", "cpu_heats", "memory", "scale"):
        monkeypatch.setattr(f"bench.{module}.Process", Local)
