"""Weights for each range of time: the published equations by hand, rows by their range, and what is stored of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends.call import call_module
from quant.clock import Moment, MomentHolder
from quant.layers import FloatLayer, bind, quantizable_layers, quantized_layers
from quant.published import PublishedLayer, empty_of
from quant.ranges import TimeRanges
from quant.recipe import Activations, Scheme, Weights, parse
from quant.recipe_parts import Rotation, Smoothing
from quant.rotation.channels import Channels
from quant.rotation.per_range import PerRange, asymmetric, sampled_error
from quant.tokens import round_between
from tests.quant.in_time import on_meta, run_in_time

SCHEME = Scheme(
    weights=Weights(bits=4, zero_point="channel", ranges="each"),
    activations=Activations(grain="token", zero_point="token"),
)
RANGES = TimeRanges(((2,), (), (0, 1)))
PUBLISHED = (
    'name = "p"\n[weights]\nbits = 4\nzero_point = "channel"\nranges = "each"\n'
    '[activations]\ngrain = "token"\nzero_point = "token"\n[ranges]\ncount = 4\n'
)


def channels(width: int, slots: int = 3) -> Channels:
    """Samples in which a few channels stand out, others at other slots."""
    generator = torch.Generator().manual_seed(0)
    samples = {}
    for slot in range(slots):
        rows = torch.randn(64, width, generator=generator)
        rows[:, (3 + 2 * slot) % width] *= 40.0
        samples[slot] = rows
    return Channels(torch.stack([rows.abs().amax(0) for rows in samples.values()]), samples)


def layer_of(kind: str) -> FloatLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(16, 12) if kind == "linear" else nn.Conv2d(16, 12, 3, padding=1)
    return layer.requires_grad_(False)


def at(layer: nn.Module, slots: list[int]) -> nn.Module:
    """The layer bound to rows at these slots."""
    rows, holder = torch.tensor(slots), MomentHolder()
    holder.now = Moment(rows, torch.zeros_like(rows), rows, torch.ones(len(rows), dtype=torch.bool))
    bind(layer, holder)
    return layer


def by_hand(x: Tensor, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Inputs [M, C] rounded token by token, and a weight [out, C] channel by channel, both from least to greatest."""
    rounded = []
    for row in weight.double():
        low, top = min(0.0, float(row.min())), max(0.0, float(row.max()))
        step = (top - low) / (2**bits - 1)
        zero = round(-low / step)
        rounded.append(((row / step).round() + zero).clamp(0, 2**bits - 1).sub(zero).mul(step))
    return round_between(x, 255), torch.stack(rounded).float()


@pytest.mark.parametrize(
    ("method", "smooths"),
    [("none", True), ("hadamard", True), ("hadamard", False), ("greedy", True), ("greedy", False)],
)
def test_the_published_equations(method: str, smooths: bool) -> None:
    layer, seen = layer_of("linear"), channels(16)
    rotation = Rotation(method=method, block=8) if method != "none" else Rotation()
    smoothing = Smoothing(method="fixed", exponents=(0.3, 0.9, 0.11), momentum=0.5) if smooths else Smoothing()
    quantized, form = PerRange(rotation, smoothing, RANGES).rounded("x", layer, SCHEME, seen)
    assert isinstance(quantized, PublishedLayer) and form.ranges == 2
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(9))
    for slot, place, exponent in ((2, 0, 0.3), (0, 1, 0.11), (1, 1, 0.11)):
        peaks = [seen.peaks[own] for own in RANGES.used[place]]
        mean = peaks[0] if len(peaks) == 1 else 0.5 * peaks[0] + 0.5 * peaks[1]
        s = mean**exponent / layer.weight.abs().amax(0) ** (1 - exponent) if smooths else torch.ones(16)
        blocks = quantized.of_range(place).transform
        g = torch.eye(16) if method == "none" else blocks(torch.diag(s))  # a unit of each channel, as it comes out
        if method != "none":
            torch.testing.assert_close(g @ g.T, torch.eye(16), rtol=0, atol=1e-5)
        inputs, weight = by_hand((x / s) @ g, (layer.weight * s) @ g, 4)
        assert layer.bias is not None
        expected = inputs @ weight.T + layer.bias
        found = at(quantized, [slot])(x[None])[0]
        assert float((found - expected).norm() / expected.norm()) < 0.01  # of integers at a tie, one may differ


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("method", ["none", "hadamard", "greedy"])
def test_eight_bits_come_close_to_the_float_layer_at_each_range(kind: str, method: str) -> None:
    layer, seen = layer_of(kind), channels(16)
    fine = SCHEME.model_copy(update={"weights": SCHEME.weights.model_copy(update={"bits": 8})})
    rotation = Rotation(method=method) if method != "none" else Rotation()
    quantized, _ = PerRange(rotation, Smoothing(method="search"), RANGES).rounded("x", layer, fine, seen)
    x = torch.randn(3, 4, 16) if kind == "linear" else torch.randn(3, 16, 5, 5)
    output, expected = at(quantized, [2, 0, 1])(x), layer(x)
    assert float((output - expected).norm() / expected.norm()) < 0.02
    for row, slot in enumerate((2, 0, 1)):
        alone = at(quantized, [slot])(x[row : row + 1])
        torch.testing.assert_close(alone, output[row : row + 1], rtol=1e-4, atol=1e-4)
    assert sampled_error(layer, quantized, seen) < 0.02


def test_rows_that_do_not_lead_are_told_apart_only_where_all_are_of_one_range() -> None:
    quantized, _ = PerRange(Rotation(), Smoothing(method="fixed"), RANGES).rounded(
        "x", layer_of("linear"), SCHEME, channels(16)
    )
    frames = torch.randn(6, 16)
    assert at(quantized, [0, 1])(frames).shape == (6, 12)
    with pytest.raises(quant.QuantError, match="run rows alone"):
        at(quantized, [0, 2])(frames)


def test_a_searched_exponent_is_the_best_of_fixed_ones_for_each_range() -> None:
    layer, seen = layer_of("linear"), channels(16)

    def error(smoothing: Smoothing) -> float:
        return sampled_error(layer, PerRange(Rotation(), smoothing, RANGES).rounded("x", layer, SCHEME, seen)[0], seen)

    fixed = [error(Smoothing(method="fixed", exponent=exponent)) for exponent in (0.0, 0.11, 0.25, 0.5, 0.75, 1.0)]
    assert error(Smoothing(method="search")) <= min(fixed) * (1 + 1e-6)


@pytest.mark.parametrize("method", ["hadamard", "greedy"])
def test_each_range_spreads_its_own_outliers(method: str) -> None:
    seen = channels(16)
    rotation = Rotation(method=method)
    quantized, _ = PerRange(rotation, Smoothing(), RANGES).rounded("x", layer_of("linear"), SCHEME, seen)
    assert isinstance(quantized, PublishedLayer)
    for place, slots in enumerate(RANGES.used):
        x = torch.cat([seen.samples[slot] for slot in slots])
        turned = quantized.of_range(place).transform(x)
        assert float(turned.abs().max()) < 0.6 * float(x.abs().max())
        torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-4)
    assert quantized.of_range(0).transform.form == quantized.of_range(1).transform.form


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_asymmetric_weights_span_each_channel(bits: int) -> None:
    weight = torch.tensor([[-1.0, 0.2, 3.0], [0.5, 1.0, 2.0], [-4.0, -1.0, -2.0], [0.0, 0.0, 0.0]])
    integers, scales, zero_points = asymmetric(weight, bits)
    back = (integers.float() - zero_points.float()[:, None]) * scales[:, None]
    assert integers.dtype is zero_points.dtype is torch.int8
    assert -(2 ** (bits - 1)) <= int(integers.min()) and int(integers.max()) < 2 ** (bits - 1)
    spans = torch.tensor([4.0, 2.0, 4.0, 2**bits - 1.0])
    torch.testing.assert_close(scales, spans / (2**bits - 1))
    assert bool(((back - weight).abs() <= scales[:, None] / 2 * 1.001).all())
    with pytest.raises(ValueError, match="NaN or infinity"):
        asymmetric(torch.tensor([[torch.nan]]), 8)


def test_layers_that_nothing_transforms_are_the_same_at_all_times() -> None:
    odd = nn.Linear(15, 4).requires_grad_(False)
    rotation = PerRange(Rotation(method="greedy"), Smoothing(), RANGES)
    for name, layer, match in (("x", odd, ("*",)), ("x", layer_of("linear"), ("y",))):
        own = replace(rotation, rotation=Rotation(method="greedy", match=match))
        quantized, form = own.rounded(name, layer, SCHEME, channels(layer.weight.shape[1]))
        assert not isinstance(quantized, PublishedLayer)
        assert (form.kind, form.ranges, form.offset_weights) == ("plain", 0, True)
        assert float((quantized(x := torch.randn(2, layer.weight.shape[1])) - layer(x)).norm() / layer(x).norm()) < 0.2


def test_empty_layers_have_the_same_buffers() -> None:
    layer = layer_of("conv2d")
    quantized, form = PerRange(Rotation(method="greedy", block=8), Smoothing(method="fixed"), RANGES).rounded(
        "x", layer, SCHEME, channels(16)
    )
    told = {name: (tensor.shape, tensor.dtype) for name, tensor in quantized.state_dict().items()}
    assert told == {name: (tensor.shape, tensor.dtype) for name, tensor in empty_of(layer, form).state_dict().items()}
    assert sum(name.endswith("bias") for name in told) == 1
    with pytest.raises(ValueError, match="no empty layer"):
        empty_of(layer, form.model_copy(update={"transform": None}))


@pytest.mark.parametrize(
    ("family", "rotation"), [("pixart-sigma", '[rotation]\nmethod = "hadamard"\nblock = 16\n'), ("sd15", "")]
)
def test_whole_models_run_saved_and_loaded_by_the_reference_alone(family: str, rotation: str, tmp_path: Path) -> None:
    module, call = tiny_denoiser(family, rows=4)
    run = run_in_time(call)
    recipe = parse(PUBLISHED + '[smoothing]\nmethod = "fixed"\nexponent = 0.11\n' + rotation, "here")
    quantized = copy.deepcopy(module)
    made = quant.quantize_(quantized, recipe, quant.calibrate_for(quantized, run, recipe))
    assert "ranges of time: 4" in made.report.notes
    manifest = quant.save(
        tmp_path / "made", quantized, made, recipe, model="x", model_sha256="a" * 64, calibration={}, version="0"
    )
    told = next(layer for layer in made.report.layers if layer.scheme and "for each of 4 ranges" in layer.scheme)
    assert told.scheme == "s4 per channel with zero points for each of 4 ranges of time, u8 per token with zero points"
    assert told.error is not None and 0 < told.error < 0.2
    assert manifest.backend == "reference"
    integers = sum(layer.integers.numel() for _, layer in quantized_layers(quantized))
    assert integers == 4 * sum(layer.weight.numel() for layer in quantizable_layers(module).values())
    assert manifest.weights_bytes > integers / 2
    options = quant.Options(tmp_path / "cache", threads=1)
    with pytest.raises(quant.BackendError, match=r"each range of time: .* only the reference backend"):
        quant.open_backend("openvino", tmp_path / "made", manifest, lambda: on_meta(module), options)
    executable = quant.open_backend("reference", tmp_path / "made", manifest, lambda: on_meta(module), options)
    run(lambda one: _close(executable.run(one), call_module(module, one)))


def _close(output: Tensor, expected: Tensor) -> Tensor:
    assert float(quant.relative_errors(output, expected).max()) < 0.3
    return output


def test_statistics_of_channels_are_needed(net: nn.Module, statistics: quant.Statistics) -> None:
    recipe = parse(PUBLISHED + '[smoothing]\nmethod = "fixed"\n', "here")
    with pytest.raises(quant.QuantError, match="statistics of channels"):
        quant.quantize_(net, recipe, statistics)
