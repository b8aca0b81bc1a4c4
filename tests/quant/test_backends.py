"""Both backends on one artifact: they agree, a row's answer is its own, nothing is compiled twice or kept for ever."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quant
from quant.backends import convert, runtime
from quant.backends import openvino as engine
from quant.backends.call import Executable, nested
from quant.backends.openvino import _Compiled
from quant.backends.reference import ReferenceExecutable
from quant.clock import MomentHolder

Artifact = tuple[Path, quant.Manifest]
Make = Callable[..., quant.Call]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code that the tests of this file share, as restarts of one machine do."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def opened(artifact: Artifact, cache: Path, empty: Callable[[], nn.Module]) -> Callable[[str], Executable]:
    return lambda name: quant.open_backend(name, *artifact, empty, quant.Options(cache, threads=1))


@pytest.fixture
def openvino(opened: Callable[[str], Executable]) -> engine.OpenVinoExecutable:
    executable = opened("openvino")
    assert isinstance(executable, engine.OpenVinoExecutable)
    return executable


def test_openvino_agrees_with_the_reference(
    openvino: Executable, opened: Callable[[str], Executable], call: Make
) -> None:
    errors = quant.relative_errors(openvino.run(call(5)), opened("reference").run(call(5)))
    assert errors.shape == (5,)
    assert float(errors.max()) <= 0.02


def test_integer_kernels_do_nearly_all_of_the_work(openvino: engine.OpenVinoExecutable, call: Make) -> None:
    share = openvino.int8_share(call(4))
    assert 0.9 <= share < 1.0  # the last layer is float


@pytest.mark.parametrize("name", quant.BACKENDS)
def test_a_row_is_the_same_in_any_company(name: str, opened: Callable[[str], Executable], call: Make) -> None:
    executable, many = opened(name), call(7)
    together = executable.run(many)
    for rows in ([0], [6], [3, 4, 5], [6, 5, 4, 3, 2, 1, 0]):
        assert torch.equal(executable.run(many.take(torch.tensor(rows))), together[rows])


def test_graphs_that_embed_timesteps_stay_in_float32(
    artifact: Artifact,
    openvino: Executable,
    empty: Callable[[], nn.Module],
    tmp_path: Path,
    call: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, manifest = artifact
    half = manifest.model_copy(update={"float_in": "bfloat16"})
    executable = quant.open_backend("openvino", folder, half, empty, quant.Options(tmp_path, threads=1))
    assert torch.equal(executable.run(call(7)), openvino.run(call(7)))
    assert "computing in float32: the graph takes sines" in caplog.text


def test_large_calls_run_in_parts(openvino: Executable, call: Make) -> None:
    many = call(19)
    whole = openvino.run(many)
    assert whole.shape == (19, 8, 6, 6)
    assert torch.equal(whole[17:], openvino.run(many.take(torch.tensor([17, 18]))))


def test_concurrent_callers_never_compile_twice(
    openvino: engine.OpenVinoExecutable, call: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []
    compile_once = openvino._compile

    def counted(part: quant.Call, rows: int) -> Any:
        compiled.append(rows)
        return compile_once(part, rows)

    monkeypatch.setattr(openvino, "_compile", counted)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(openvino.run, [call(2), call(3), call(4)] * 4))
    assert sorted(compiled) == [2, 4]
    assert all(torch.equal(answers[0], answer) for answer in answers[3::3])


def test_failures_to_compile_are_told_and_not_remembered(
    openvino: engine.OpenVinoExecutable, call: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(openvino, "_compiled_before", lambda part, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            openvino.run(call(1))
    assert openvino.run(call(1)).shape[0] == 1


def test_compiled_graphs_are_bounded(openvino: engine.OpenVinoExecutable, call: Make) -> None:
    openvino._room = 2
    stored = openvino.weights_bytes
    for rows in (1, 2, 4, 1):
        openvino.run(call(rows))
    assert len(openvino._ready) == 2
    assert openvino.weights_bytes == 2 * stored


def test_copies_ask_for_room_and_the_oldest_goes_without(
    artifact: Artifact, empty: Callable[[], nn.Module], cache: Path, call: Make
) -> None:
    asked: list[tuple[int, int]] = []
    room = 2 * artifact[1].memory_bytes

    def grow(held: int, more: int, take: Callable[[], None]) -> bool:
        asked.append((held, more))
        if held + more > room:
            return False
        take()
        return True

    options = quant.Options(cache, threads=1, grow=grow)
    executable = quant.open_backend("openvino", *artifact, empty, options)
    one = artifact[1].memory_bytes
    executable.run(call(1))
    assert (asked, executable.weights_bytes) == ([(0, one)], one)
    executable.run(call(2))
    assert (asked[1:], executable.weights_bytes) == ([(one, one)], 2 * one)
    first = executable.run(call(4))
    assert asked[2:] == [(2 * one, one), (one, one)]
    assert executable.weights_bytes == 2 * one
    room = 0
    assert executable.run(call(8)).shape[0] == 8, "one copy is always had"
    assert executable.weights_bytes == one
    assert torch.equal(executable.run(call(4)), first)


def test_graphs_on_disk_are_bounded_and_made_again(
    artifact: Artifact, empty: Callable[[], nn.Module], tmp_path: Path, call: Make
) -> None:
    executable = quant.open_backend("openvino", *artifact, empty, quant.Options(tmp_path, cache_bytes=0, threads=1))
    small, large = call(1), call(1)
    large = replace(large, rows={**large.rows, "sample": torch.cat([large.rows["sample"]] * 2, dim=-1)})
    answers = [executable.run(one) for one in (small, large)]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len({path.with_suffix("") for path in left}) == 1, "what was used last"
    again = quant.open_backend("openvino", *artifact, empty, quant.Options(tmp_path, cache_bytes=0, threads=1))
    assert all(torch.equal(again.run(one), answer) for one, answer in zip((small, large), answers, strict=True))


def test_compiled_code_that_is_gone_at_once_is_run_all_the_same(
    artifact: Artifact, empty: Callable[[], nn.Module], tmp_path: Path, call: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed_by_another(folder: Path, most_bytes: int) -> list[Path]:
        gone = list(folder.rglob("*.blob"))
        for path in gone:
            path.unlink()
        return gone

    expected = quant.open_backend("openvino", *artifact, empty, quant.Options(tmp_path / "a", threads=1)).run(call(2))
    monkeypatch.setattr("quant.backends.openvino.disk.keep_within", removed_by_another)
    executable = quant.open_backend("openvino", *artifact, empty, quant.Options(tmp_path / "b", threads=1))
    assert torch.equal(executable.run(call(2)), expected)
    assert not list(tmp_path.joinpath("b").rglob("*.blob"))


def test_a_warm_cache_needs_no_torch_module(artifact: Artifact, openvino: Executable, cache: Path, call: Make) -> None:
    first = openvino.run(call(2))

    def never() -> nn.Module:
        raise AssertionError("traced again")

    again = engine.OpenVinoExecutable(never, artifact[1], cache, threads=1)
    assert torch.equal(again.run(call(2)), first)


def test_the_torch_copy_is_let_go(
    artifact: Artifact, empty: Callable[[], nn.Module], tmp_path: Path, call: Make
) -> None:
    made: list[weakref.ref[nn.Module]] = []

    def module() -> nn.Module:
        loaded = quant.load_into(empty(), *artifact)
        made.append(weakref.ref(loaded))
        return loaded

    executable = engine.OpenVinoExecutable(module, artifact[1], tmp_path, threads=1)
    executable.run(call(1))
    gc.collect()
    assert [reference() for reference in made] == [None]


class Timely(nn.Module):
    """Adds the slot of its rows' moment, read twice with a pause between."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = MomentHolder()

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        first = self.holder.now.slot
        time.sleep(0.01)
        return sample + first + self.holder.now.slot


def test_concurrent_calls_of_the_reference_keep_their_moments() -> None:
    executable = ReferenceExecutable(Timely())

    def answer(slot: int) -> float:
        rows = {"sample": torch.zeros(1)}
        where, one = torch.tensor([slot]), torch.ones(1, dtype=torch.int64)
        now = quant.Moment(where, one, where, one.bool())
        return float(executable.run(quant.timed(quant.Call(rows, quant.StepClock.unknown(1)), now)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(8))) == [2.0 * slot for slot in range(8)]


@pytest.mark.parametrize("name", quant.BACKENDS)
def test_closed_executables_say_so(name: str, opened: Callable[[str], Executable], call: Make) -> None:
    executable = opened(name)
    assert executable.weights_bytes > 0
    executable.close()
    assert executable.weights_bytes == 0
    with pytest.raises(quant.BackendError, match="was closed"):
        executable.run(call(1))


def test_unknown_backends_are_answered_with_the_known_ones(opened: Callable[[str], Executable]) -> None:
    with pytest.raises(quant.BackendError, match="no backend 'tpu'; known: openvino, reference"):
        opened("tpu")


class Unusable(nn.Module):
    """Ignores its second argument."""

    def forward(self, sample: torch.Tensor, time: torch.Tensor, scale: float) -> torch.Tensor:
        return sample * scale


def test_what_cannot_be_converted_is_told(call: Make) -> None:
    with pytest.raises(quant.BackendError, match="OpenVINO cannot take over Linear"):
        convert.convert(nn.Linear(2, 2), call(2))


def test_an_unused_argument_does_no_harm(artifact: Artifact, tmp_path: Path, call: Make) -> None:
    executable = engine.OpenVinoExecutable(Unusable, artifact[1], tmp_path, threads=1)
    assert torch.equal(executable.run(call(3)), call(3).rows["sample"] * 2)


def test_telemetry_is_off() -> None:
    assert sys.modules["openvino_telemetry"] is None


def test_calls_know_what_compiled_code_depends_on(call: Make) -> None:
    assert call(2).signature() == call(5, seed=9).signature()
    other = quant.Call(call(2).rows, call(2).clock, constants={"scale": 3.0})
    assert other.signature() != call(2).signature()
    with pytest.raises(ValueError, match="must have 3 rows"):
        quant.Call(call(2).rows, quant.StepClock.unknown(3))
    assert nested({"a": 1, "b.c": 2, "b.d": 3}) == {"a": 1, "b": {"c": 2, "d": 3}}


class Masked(nn.Module):
    """Keeps what is positive, and what is below -1, by masks that are filled with truth values."""

    def forward(self, sample: torch.Tensor, time: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor]:
        kept = torch.ones(sample.shape, dtype=torch.bool).masked_fill(sample < 0, False)
        return (sample * kept.masked_fill(sample < -1, True) * scale,)


def test_masks_of_truth_values_are_taken_over(call: Make) -> None:
    model = convert.convert(Masked(), call(3))
    compiled = _Compiled([(runtime.core().compile_model(model, "CPU"), None)], call(3), 3)
    expected = quant.call_module(Masked(), call(3))
    assert 0 < expected.count_nonzero() < expected.numel()
    assert torch.equal(compiled.run(call(3)), expected)
