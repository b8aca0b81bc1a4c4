"""Compiled graphs on disk: read back they compute the same; what cannot be read is compiled again, or not kept."""

from __future__ import annotations

import logging
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
