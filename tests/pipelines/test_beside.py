"""Float's answers are remembered; its seconds are measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines import beside
from pipelines.beside import Remembered, timed
from pipelines.denoiser import DenoiserCall, TorchDenoiser
from pipelines.load import Components, load_components, load_denoiser
from zoo.build import ZOO, model_defaults, typical_calls


class _Counting(TorchDenoiser):
    calls = 0

    def run(self, call: DenoiserCall) -> Tensor:
        self.calls += 1
        return super().run(call)


@pytest.fixture(scope="module")
def components() -> Components:
    return load_components(ZOO / "models" / "shapes-unet")


def test_nothing_is_computed_twice_and_nothing_is_mixed_up(components: Components) -> None:
    plain = _Counting("float", load_denoiser(components))
    truth = Remembered(plain)
    calls = typical_calls(components, 3)
    first = [truth.run(call) for call in calls]
    first[0].add_(1)  # a caller may write into what it got
    again = [truth.run(call) for call in calls]
    assert plain.calls == len(calls)
    assert all(torch.equal(now, plain.run(call)) for now, call in zip(again, calls, strict=True))


def test_memory_is_bounded(components: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _Counting("float", load_denoiser(components))
    truth, calls = Remembered(plain), typical_calls(components, 3)
    monkeypatch.setattr(beside, "KEPT_BYTES", 2 * plain.run(calls[0]).nbytes)
    plain.calls = 0
    for _ in range(2):
        answers = [truth.run(call) for call in calls]
    assert plain.calls == len(calls) + 1, "two are remembered, the third is computed again"
    assert all(torch.equal(now, plain.run(call)) for now, call in zip(answers, calls, strict=True))


def test_seconds_are_of_denoisers_that_compute_every_time(components: Components) -> None:
    plain, defaults = _Counting("float", load_denoiser(components)), model_defaults(components.folder)
    seconds = timed(components, {"float": plain, "again": plain}, ["a red circle"], defaults, rounds=2)
    assert set(seconds) == {"float", "again"} and min(seconds.values()) > 0
    assert plain.calls == 2 * 3 * defaults.num_inference_steps
