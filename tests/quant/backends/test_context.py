"""What is made of text alone is cut out of graphs of any family, gives the same numbers, and is not computed twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends import context, convert, kernels, runtime
from quant.backends.call import Call
from quant.backends.context import Context
from quant.backends.moment import forget_steps
from quant.backends.openvino import OpenVinoExecutable, _Compiled
from quant.clock import BRANCHES, Moment, MomentHolder
from quant.layers import InputGrid, QuantizedLinear

WITH_TEXT = {"sd15", "sdxl", "lcm", "pixart-sigma", "pixart-sizes", "sana", "wan", "wan-ti2v", "ltx", "ltx-i2v"}
"""Families whose cross-attention has keys and values of text alone; joint attention mixes it with the picture."""

TRACED = TINY_DENOISERS.keys() - {"minimax-h3", "z-image"}
"""The former packs its rows into one, the latter cannot be traced."""


def graph(module: nn.Module, call: Call) -> Any:
    model = convert.convert(module, call)
    model.reshape(convert.shapes(model, call, call.count))
    context.fix_shapes(model)
    return model


def compiled(module: nn.Module, call: Call, *, cut: bool, halves: bool = False) -> _Compiled:
    parts = context.cut(graph(module, call), call, halves=halves) if cut else (graph(module, call), None)
    asked = runtime.properties(1) | (runtime.IN_BFLOAT16 if halves and runtime.has_bfloat16() else {})
    fresh = [(runtime.core().compile_model(one, "CPU", asked), None) for one in parts if one is not None]
    return _Compiled(fresh, call, call.count)


def other_text(call: Call) -> Call:
    texts = {name: tensor.flip(0) * 0.5 for name, tensor in call.rows.items() if name == "encoder_hidden_states"}
    return replace(call, rows={**call.rows, **texts})


def later(call: Call) -> Call:
    """The same request at another step."""
    moved = {name: tensor * 0.5 for name, tensor in call.rows.items() if call.role(name) in ("sample", "time")}
    return replace(call, rows={**call.rows, **moved})


@pytest.mark.parametrize("name", sorted(TRACED))
def test_every_family_answers_the_same_in_two_graphs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "WORTH", 1e-9)
    module, call = tiny_denoiser(name, rows=2)
    whole, parted = compiled(module, call, cut=False), compiled(module, call, cut=True)
    assert (parted.context is not None) >= (name in WITH_TEXT)
    for asked in (call, later(call), other_text(call)):
        assert float(quant.relative_errors(parted.run(asked), whole.run(asked)).max()) < 1e-5


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["wan", "pixart-sigma"])
def test_keys_and_values_of_text_leave_the_graph(name: str, rows: int) -> None:
    module, call = tiny_denoiser(name, rows=rows)
    whole = kernels.multiply_adds(graph(module, call))
    rest, text = context.cut(graph(module, call), call, halves=False)
    assert text is not None
    assert kernels.multiply_adds(rest) + kernels.multiply_adds(text) == whole
    tokens = call.rows["encoder_hidden_states"].shape[1]
    projected = [layer for path, layer in module.named_modules() if path.endswith(("attn2.to_k", "attn2.to_v"))]
    least = sum(rows * tokens * layer.weight.numel() for layer in projected if isinstance(layer, nn.Linear))
    assert len(projected) == 4 and kernels.multiply_adds(text) >= least
    assert "encoder_hidden_states" in {name for port in text.inputs for name in port.get_names()}
    assert "encoder_hidden_states" not in {name for port in rest.inputs for name in port.get_names()}


def test_bfloat16_is_handed_over_in_two_bytes() -> None:
    module, call = tiny_denoiser("pixart-sigma", rows=2)
    whole, parted = (compiled(module, call, cut=cut, halves=True) for cut in (False, True))
    exact = compiled(module, call, cut=True)
    assert float(quant.relative_errors(parted.run(call), whole.run(call)).max()) < 0.02
    exact.run(call)
    assert parted.context is not None and exact.context is not None
    texts = sum(call.tensors()[name].nbytes for name in parted.context._names)
    assert 2 * (parted.context.kept_bytes - texts) == exact.context.kept_bytes - texts


class Counted:
    """How often a context computed."""

    def __init__(self, of: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, computed = 0, of._computed

        def counting(asked: list[Tensor]) -> dict[str, Any]:
            self.count += 1
            return computed(asked)

        monkeypatch.setattr(of, "_computed", counting)


def text_of(call: Call, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(call.rows["encoder_hidden_states"].shape, generator=generator)
    return replace(call, rows={**call.rows, "encoder_hidden_states": text})


def test_a_text_is_computed_once_and_a_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = tiny_denoiser("wan", rows=2)
    parted = compiled(module, call, cut=True)
    assert parted.context is not None
    counted = Counted(parted.context, monkeypatch)
    for _ in range(3):
        for seed in range(context.MOST):
            parted.run(later(text_of(call, seed)))
    assert counted.count == context.MOST
    parted.run(text_of(call, context.MOST))  # the one that was not used for longest goes
    parted.run(text_of(call, 1))
    assert counted.count == context.MOST + 1
    parted.run(text_of(call, 0))
    assert counted.count == context.MOST + 2


def test_texts_are_kept_within_bytes_and_the_last_two_always(monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = tiny_denoiser("wan", rows=2)
    parted = compiled(module, call, cut=True)
    assert parted.context is not None
    parted.run(call)
    one = parted.context.kept_bytes
    for bound, kept in ((3 * one, 3), (3 * one - 1, 2), (0, 2)):
        monkeypatch.setattr(context, "MOST_BYTES", bound)
        for seed in range(4):
            parted.run(text_of(call, seed))
        assert parted.context.kept_bytes == kept * one


def test_a_text_that_is_changed_in_place_is_another_text() -> None:
    module, call = tiny_denoiser("wan", rows=2)
    parted, whole = compiled(module, call, cut=True), compiled(module, call, cut=False)
    parted.run(call)
    call.rows["encoder_hidden_states"].mul_(0.5)
    assert float(quant.relative_errors(parted.run(call), whole.run(call)).max()) < 1e-5


@pytest.mark.parametrize("name", ["unet", "unet-class"])
def test_where_there_is_no_text_there_is_one_graph(name: str) -> None:
    module, call = tiny_denoiser(name, rows=2)
    rest, text = context.cut(graph(module, call), call, halves=False)
    assert text is None and kernels.multiply_adds(rest) == kernels.multiply_adds(graph(module, call))


class Echo(nn.Module):
    """Answers what it makes of its text alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, sample: Tensor, text: Tensor) -> tuple[Tensor]:
        return (self.layer(text),)


def test_a_graph_of_text_alone_is_left_whole() -> None:
    call = Call(
        {"sample": torch.randn(2, 8), "text": torch.randn(2, 8)}, quant.StepClock.unknown(2), roles={"text": "text"}
    )
    assert context.cut(graph(Echo().eval(), call), call, halves=False)[1] is None


class Places(nn.Module):
    """Adds sines of places to a sample, or of what the sample holds."""

    def __init__(self, *, of_values: bool) -> None:
        super().__init__()
        self.of_values = of_values

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        places = sample if self.of_values else torch.arange(sample.shape[-1], dtype=torch.float32)
        return (sample + torch.sin(places * 0.1),)


@pytest.mark.parametrize("of_values", [False, True])
def test_sines_of_places_are_no_embedding_of_time(of_values: bool) -> None:
    call = Call({"sample": torch.randn(2, 8)}, quant.StepClock.unknown(2))
    assert convert.computes_angles(graph(Places(of_values=of_values).eval(), call)) == of_values


def empty_wan() -> nn.Module:
    """Without weights, but with the angles that are no weights."""
    with init_empty_weights(include_buffers=False):
        module: nn.Module = WanTransformer3DModel(**TINY_DENOISERS["wan"].config)
    return module.eval().requires_grad_(False)


Open = Callable[[Path], OpenVinoExecutable]


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> tuple[Open, Call, Callable[[Call], Tensor]]:
    """Opens an artifact of a tiny Wan whose scales follow steps and branches; a call; and what torch answers."""
    module, call = tiny_denoiser("wan", rows=2)
    recipe = quant.load_recipe("tfmq-w8a8")
    calls = [at_step(text_of(call, 0), step) for step in range(3)]

    def feed(answer: Callable[[Call], Tensor]) -> None:
        for one in calls:
            answer(one)

    folder = tmp_path_factory.mktemp("follower") / "artifact"
    made = quant.quantize_(module, recipe, quant.calibrate_for(module, feed, recipe))
    about: dict[str, Any] = {"model": "tiny", "model_sha256": "a" * 64, "calibration": {}, "version": "0"}
    manifest = quant.save(folder, module, made, recipe, **about)

    def opened(cache: Path, backend: str = "openvino") -> Any:
        return quant.open_backend(backend, folder, manifest, empty_wan, quant.Options(cache, threads=1))

    reference = opened(folder, "reference")
    return opened, calls[1], reference.run


def test_scales_that_follow_branches_alone_stay_with_the_text(
    follower: tuple[Open, Call, Callable[[Call], Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, call, reference = follower
    executable = opened(tmp_path)
    first = executable.run(call)
    assert float(quant.relative_errors(first, reference(call)).max()) < 0.02
    inner = getattr(executable, "executable", executable)
    (ready,) = (future.result() for future in inner._ready.values())
    assert ready.context is not None and len(ready.context._answers) == 4  # keys and values of two blocks
    counted = Counted(ready.context, monkeypatch)
    for step in (0, 2):
        executable.run(at_step(call, step))
    assert counted.count == 0
    swapped = call.take(torch.tensor([1, 0]))
    assert torch.equal(executable.run(swapped).flip(0), first) and counted.count == 1


def test_both_graphs_are_kept_and_neither_is_used_without_the_other(
    follower: tuple[Open, Call, Callable[[Call], Tensor]], tmp_path: Path
) -> None:
    opened, call, _ = follower
    first = opened(tmp_path).run(call)
    (text,) = tmp_path.rglob("*-text.blob")
    written = text.stat().st_ino
    assert torch.equal(opened(tmp_path).run(call), first) and text.stat().st_ino == written
    text.unlink()
    assert torch.equal(opened(tmp_path).run(call), first) and text.is_file()


@pytest.mark.parametrize(("second", "length"), [(0.5, BRANCHES), (0.6, 2 * BRANCHES)])
def test_scales_equal_at_all_steps_are_kept_once(second: float, length: int) -> None:
    layer = QuantizedLinear((4, 8), True, InputGrid(8, slots=2), "cpu")
    layer.set_weight(torch.ones(4, 8, dtype=torch.int8), torch.ones(4), torch.zeros(4))
    layer.set_time_grids(torch.tensor([[0.1, 0.2, 0.5], [0.1, 0.2, second]]), 128)
    layer.holder = MomentHolder()
    one = torch.ones(2, dtype=torch.int64)
    layer.holder.now = Moment(one, torch.tensor([0, 2]), one, one.bool())
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    forget_steps(layer)
    assert layer.input_scale is not None and len(layer.input_scale) == length
    assert torch.equal(layer(x), before)


def at_step(call: Call, step: int) -> Call:
    clock = quant.StepClock(torch.full((2,), step), torch.full((2,), 3), torch.tensor([quant.COND, quant.UNCOND]))
    time = next(name for name in call.rows if call.role(name) == "time")
    return replace(call, rows={**call.rows, time: torch.full_like(call.rows[time], 900 - 300 * step)}, clock=clock)
