"""Graphs made ready for a number of rows compute what they did, in every family of models."""

from __future__ import annotations

from typing import Any

import pytest

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends import convert, fitting, parted, polyphase
from tests.quant.backends.graphs import answer, graph

TRACED = sorted(TINY_DENOISERS.keys() - {"minimax-h3", "z-image"})
"""The former packs its rows into one, the latter cannot be traced."""


@pytest.mark.parametrize("name", TRACED)
def test_every_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "WORTH", 1)
    monkeypatch.setattr(polyphase, "WORTH", 1)
    module, call = tiny_denoiser(name, rows=2)
    expected = answer(graph(module, call), call)
    model = convert.convert(module, call)
    fitting.fit(model, call, 2, by_phases=True)
    assert float(quant.relative_errors(answer(model, call), expected).max()) < 1e-5


@pytest.mark.parametrize("by_phases", [False, True])
def test_weights_are_rounded_again_only_where_asked_for(by_phases: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(polyphase, "rewrite", asked.append)
    module, call = tiny_denoiser("sd15", rows=2)
    model = convert.convert(module, call)
    fitting.fit(model, call, 3, by_phases=by_phases)
    assert asked == ([model] if by_phases else [])
    assert [next(iter(port.get_shape())) for port in model.outputs] == [3]
