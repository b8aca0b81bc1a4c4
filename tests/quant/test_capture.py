"""Captures: what waits and goes on gives the same bytes as full forwards, within a memory budget or without one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.backends.call import call_module
from quant.blocks import Unit, find_units
from quant.capture import Sweep
from quant.layers import Quantized, replace_layers
from quant.samples import Samples
from quant.stacks import NotByRows, Stack, examine, tensors_in, with_tensors, without_tensors
from quant.waiting import LiveBytes, Waiting
from tests.quant.blocknet import call_at, make_block_net, nearest, samples_of


def test_nested_values_are_taken_apart_and_put_together() -> None:
    one, two = torch.ones(2), torch.zeros(3)
    value = ((one, None), {"a": [two, 5], "b": "text"})
    tensors: list[Tensor] = []
    holes = without_tensors(value, tensors)
    assert [id(tensor) for tensor in tensors] == [id(one), id(two)]
    filled = with_tensors(holes, [two, one])
    assert filled[0][0] is two
    assert filled[1]["a"][0] is one
    assert filled[0][1] is None
    assert filled[1]["a"][1:] == [5]
    assert filled[1]["b"] == "text"


def test_a_forward_waits_and_goes_on() -> None:
    steps: list[str] = []

    def body() -> None:
        steps.append("one")
        run.wait()
        assert not torch.is_grad_enabled()
        steps.append("two")

    run = Waiting(body)
    run.go_on()
    assert steps == ["one"]
    assert not run.finished
    run.go_on()
    assert steps == ["one", "two"]
    assert run.finished


def test_an_abandoned_forward_ends_even_where_models_catch_everything() -> None:
    seen: list[str] = []

    def body() -> None:
        try:
            run.wait()
        except Exception:  # noqa: BLE001  (as models do)
            seen.append("swallowed")
        finally:
            seen.append("cleaned up")

    run, idle = Waiting(body), Waiting(body)
    before = threading.active_count()
    run.go_on()
    assert threading.active_count() == before + 1
    run.abandon()
    idle.abandon()
    assert seen == ["cleaned up"]
    assert threading.active_count() == before


def test_what_a_forward_raises_is_raised_where_it_is_run() -> None:
    def body() -> None:
        raise ValueError("no such shape")

    run = Waiting(body)
    with pytest.raises(ValueError, match="no such shape"):
        run.go_on()
    assert run.finished


def test_live_bytes_count_what_is_alive_and_no_weights() -> None:
    weight = torch.ones(64)
    with LiveBytes([weight]) as live:
        kept = torch.ones(100)
        dropped = kept + 1
        assert live.now == 800
        del dropped
        view = weight.view(8, 8)
        assert live.now == 400
    assert view.shape == (8, 8)
    assert kept.nbytes == 400


def full_captures(
    net: nn.Module, units: tuple[Unit, ...], quantized: dict[str, Quantized], samples: Samples, unit: Unit
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and targets of a unit, of all rows in one batch, by hooks on whole forwards."""
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    (call,) = samples.calls
    part = net.get_submodule(unit.name)
    handle = part.register_forward_hook(lambda module, args, output: targets.extend(tensors_in(output)))
    with torch.no_grad():
        call_module(net, call)
    handle.remove()
    floats = {name: net.get_submodule(name) for name in quantized}
    earlier = [name for other in units[: units.index(unit)] for name in other.layers]
    replace_layers(net, {name: quantized[name] for name in earlier})
    handle = part.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.extend(tensors_in((args, kwargs))), with_kwargs=True
    )
    with torch.no_grad():
        call_module(net, call)
    handle.remove()
    replace_layers(net, {name: floats[name] for name in earlier})
    return inputs, targets


def in_order(stack: Stack, index: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    arguments, keywords, targets = stack.take(index)
    return tensors_in((arguments, keywords)), targets


@pytest.mark.parametrize("memory", [1 << 30, 200_000, 0])
def test_waiting_and_starting_anew_capture_what_full_forwards_do(memory: int) -> None:
    net = make_block_net()
    quantized, samples = nearest(net), samples_of(net, 40)
    units = find_units(net, list(quantized), samples.calls[0])
    captured = {}
    with Sweep(net, units, quantized, samples, chunk=16, memory_bytes=memory, seed=0) as sweep:
        for unit in units:
            (captured[unit.name],) = sweep.capture(unit)
            sweep.finish(unit)
    for unit in units:
        stack = captured[unit.name]
        assert stack.rows == (16 if memory == 0 else 40)
        inputs, targets = full_captures(net, units, quantized, samples, unit)
        own_inputs, own_targets = in_order(stack, torch.arange(stack.rows))
        # rows lie in another order: find each by its nearest
        for own, whole in zip(own_inputs + own_targets, inputs + targets[: len(own_targets)], strict=True):
            if own.ndim == 0 or len(own) != stack.rows:
                assert torch.equal(own, whole)
                continue
            distances = torch.cdist(
                own.reshape(len(own), -1), whole.reshape(len(whole), -1), compute_mode="donot_use_mm_for_euclid_dist"
            )
            assert float(distances.amin(1).max()) < 1e-3 * float(whole.abs().max())


def test_memory_decides_speed_and_not_results() -> None:
    net = make_block_net()
    quantized, samples = nearest(net), samples_of(net, 40)
    units = find_units(net, list(quantized), samples.calls[0])
    stacks = []
    forwards = []
    for memory in (1 << 30, 150_000):
        count = [0]
        handle = net.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        with Sweep(net, units, quantized, samples, chunk=8, memory_bytes=memory, seed=0) as sweep:
            own: list[Stack] = []
            for unit in units:
                own += sweep.capture(unit)
                sweep.finish(unit)
            stacks.append(own)
        handle.remove()
        forwards.append(count[0])
    assert forwards[0] == 2 + 2 * 5  # two to examine, then a float and a quantized one of each chunk
    assert forwards[1] > 3 * forwards[0]
    for one, two in zip(*stacks, strict=True):
        assert one.rows == two.rows == 40
        assert all(torch.equal(a, b) for a, b in zip(one.inputs + one.targets, two.inputs + two.targets, strict=True))


def test_the_model_is_as_before() -> None:
    net, threads = make_block_net().train(), threading.active_count()
    quantized, samples = nearest(net), samples_of(net)
    units = find_units(net, list(quantized), samples.calls[0])
    with (
        pytest.raises(RuntimeError, match="killed"),
        Sweep(net, units, quantized, samples, chunk=16, memory_bytes=1 << 30, seed=0) as sweep,
    ):
        sweep.capture(units[2])
        assert "forward" in net.middle.__dict__
        raise RuntimeError("killed")
    assert all("forward" not in part.__dict__ and part.training for part in net.modules())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in net.modules())
    assert threading.active_count() <= threads


class Folding(nn.Module):
    """Units fed frames folded into rows, rows that do not lead, and a tensor that differs without rows."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.turned, self.shared = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, sample: Tensor) -> Tensor:
        folded = self.frames(sample.flatten(0, 1)).reshape(sample.shape)
        turned: Tensor = self.turned(folded.transpose(0, 1))
        shared: Tensor = self.shared(sample[:1].mean(1))
        return turned.transpose(0, 1) + shared


def folding_sweep(net: nn.Module) -> tuple[tuple[Unit, ...], Callable[[Unit], Any]]:
    clock = quant.StepClock.unknown(6)
    call = quant.Call({"sample": torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))}, clock)
    units = tuple(Unit(name, (name,)) for name in ("frames", "turned", "shared"))

    def capture(unit: Unit) -> list[Stack]:
        with Sweep(net, units, {}, Samples((call,)), chunk=4, memory_bytes=1 << 20, seed=0) as sweep:
            return sweep.capture(unit)

    return units, capture


def test_folded_rows_stay_together_and_others_are_refused() -> None:
    net = Folding().eval()
    (frames, turned, shared), capture = folding_sweep(net)
    (stack,) = capture(frames)
    (fed,), _, (target,) = stack.take(torch.tensor([3, 0]))
    assert fed.shape == (8, 3)
    with torch.no_grad():
        torch.testing.assert_close(net.frames(fed), target)
    assert torch.equal(fed[4:], stack.inputs[0][0])
    with pytest.raises(NotByRows, match="cannot be cut into rows"):
        capture(turned)
    with pytest.raises(NotByRows, match="differs from call to call"):
        capture(shared)


def test_layouts_tell_rows_from_what_they_share() -> None:
    layouts = examine(make_block_net(), ["attentions.0"], call_at(0))
    attention = layouts["attentions.0"]
    assert attention is not None
    assert attention.inputs == (1, 0, 0, 1)  # tokens, places, strength, gates
    assert attention.outputs == (1, 0)
    assert attention.row_bytes == (36 * 8 + 1 + 36 * 8) * 4
    assert attention.held >= 8 * 36 * 4  # the skip waits for its concatenation


def test_outputs_that_are_not_finite_are_an_error() -> None:
    net = make_block_net()
    samples = samples_of(net, 8)
    quantized = nearest(net)
    units = find_units(net, list(quantized), samples.calls[0])
    samples.calls[0].rows["sample"][3] = float("nan")
    with (
        pytest.raises(quant.QuantError, match=r"blocks\.0: its float output holds NaN"),
        Sweep(net, units, quantized, samples, chunk=16, memory_bytes=1 << 30, seed=0) as sweep,
    ):
        sweep.capture(units[1])
