"""Compiled graphs on disk: read back they compute the same; what cannot be read is compiled again, or not kept."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quant.backends import compiled, convert, runtime
from quant.backends.call import Call
from quant.clock import StepClock

PROPERTIES = runtime.properties(1)


def call() -> Call:
    return Call({"sample": torch.arange(24.0).reshape(4, 6) / 10}, StepClock.unknown(4))


@pytest.fixture
def graph() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    named = _Named(net)
    model = convert.convert(named, call())
    model.reshape(convert.shapes(model, call(), 4))
    return runtime.core().compile_model(model, "CPU", PROPERTIES)


class _Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(sample)
        return found


def answer(model: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = model([call().rows["sample"].numpy()])[0]
    return found


def test_what_is_read_back_computes_the_same(graph: Any, tmp_path: Path) -> None:
    path, expected = tmp_path / "code" / "a.blob", answer(graph).copy()
    assert compiled.write(graph, path)
    found = compiled.read(path, PROPERTIES)
    assert found is not None
    path.unlink()  # as another process may, to keep the cache's bound
    np.testing.assert_array_equal(answer(found[0]), expected)
    assert not list(path.parent.iterdir())


def test_reading_again_what_was_let_go_of_changes_nothing(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "SWEPT_EVERY", 0.0)
    assert compiled.write(graph, tmp_path / "a.blob")
    found = compiled.read(tmp_path / "a.blob", PROPERTIES)
    assert found is not None
    np.testing.assert_array_equal(answer(found[0]), answer(graph))


READING = """
import sys
from pathlib import Path
from quant.backends import compiled, runtime

def megabytes(field):
    told = Path("/proc/self/status").read_text(encoding="utf-8").split(field + ":")[1]
    return int(told.split()[0]) / 1e3

runtime.core()
compiled.SWEPT_EVERY = 0.002
before = megabytes("VmRSS")
found = compiled.read(Path(sys.argv[1]), runtime.properties(1))
assert found is not None
print(megabytes("VmHWM") - before)
"""


def test_weights_are_packed_without_all_of_their_file_beside_them(tmp_path: Path) -> None:
    """In a process of its own; both together would take twice what the weights do."""
    wide = _Named(nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(4)))).eval()
    wanted = Call({"sample": torch.ones(4, 4096)}, StepClock.unknown(4))
    model = convert.convert(wide, wanted)
    model.reshape(convert.shapes(model, wanted, 4))
    path, weights = tmp_path / "a.blob", 4 * 4096 * 4096 * 4 / 1e6
    assert compiled.write(runtime.core().compile_model(model, "CPU", PROPERTIES), path)
    assert path.stat().st_size > 0.99e6 * weights
    done = subprocess.run(
        [sys.executable, "-c", READING, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 * weights < float(done.stdout) < 1.6 * weights


@pytest.mark.parametrize("content", [None, b"", b"no compiled code"])
def test_what_cannot_be_read_is_none_and_told_unless_it_was_never_there(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.blob"
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert compiled.read(path, PROPERTIES) is None
    assert (str(path) in caplog.text) == (content is not None)


def test_a_full_disk_is_told_and_leaves_nothing(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quant.backends.compiled.os.fsync", full)
    with caplog.at_level(logging.WARNING):
        assert not compiled.write(graph, tmp_path / "a.blob")
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
