"""The command line of benches: which run, at what size, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bench.__main__ as command
from bench import cpu_cells, scale
from bench.cpu_cells import Size


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[tuple[str, Size]]:
    """What `python -m bench` with these arguments would run beside rivals."""
    ran: list[tuple[str, Size]] = []

    def instead(name: str, full: Size, quick: Size) -> command.Beside:
        return (lambda size: ran.append((name, size))), full, quick

    beside = {name: instead(name, full, quick) for name, (_, full, quick) in command.BESIDE_RIVALS.items()}
    monkeypatch.setattr(command, "BESIDE_RIVALS", beside)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    command.main()
    return ran


def test_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, "cpu") == [("cpu", cpu_cells.FULL)]
    assert _run(monkeypatch, "cpu", "scale", "--quick") == [("cpu", cpu_cells.QUICK), ("scale", scale.QUICK)]


def test_what_is_asked_for_replaces_what_is_usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = ("--subject", "sd15@32", "--rival", "torch-fp32", "--rival", "tfmq-w8a8", "--threads", "3")
    ((name, size),) = _run(monkeypatch, "memory", *asked, "--root", str(tmp_path))
    assert (name, size.subjects, size.rivals) == ("memory", ("sd15@32",), ("torch-fp32", "tfmq-w8a8"))
    assert (size.threads, size.cores, size.root) == (3, 3, tmp_path)


def test_unknown_benches_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run(monkeypatch, "cup")
    assert "no bench cup; there are: load" in capsys.readouterr().err
