"""Layers that run kernels against the layers that define them, in every form of weights, inputs and transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quant.backends import cuda_layers
from quant.backends.cuda_install import install
from quant.backends.cuda_layers import FloatArithmetic, KernelConv, KernelLayer, KernelLinear, Once, SharedTransform
from quant.backends.cuda_waiting import Switch
from quant.clock import BRANCHES, Moment, MomentHolder
from quant.errors import BackendError
from quant.grid import to_integers, weight_scales
from quant.kernels import quantize as kernels
from quant.layers import InputGrid, Quantized, QuantizedConv2d, QuantizedLayer, bind, empty_like, parts_of
from quant.published import PublishedLayer
from quant.rotation.greedy import Blocks, greedy
from quant.rotation.hadamard import hadamard
from quant.rotation.transform import InputTransform, Transformed
from quant.temporal.layers import StepwiseLinear
from tests.quant.kernels.on import DEVICE

GRIDS = {
    "float inputs": InputGrid(None),
    "one scale": InputGrid(8),
    "one scale of 4 bits": InputGrid(4),
    "scales in time": InputGrid(8, slots=3),
    "tokens": InputGrid(8, grain="token"),
    "tokens of 4 bits": InputGrid(4, grain="token"),
}
SLOTS = 3


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill(layer: Quantized, bits: int, zero_point: int | None = None) -> None:
    """Gives a layer weights of so many bits and grids that suit numbers around zero."""
    for place, part in enumerate(parts_of(layer)):
        weight = numbers(*part.integers.shape, seed=place + 1)
        scales = weight_scales(weight, bits, "max")
        bias = None if part.bias is None else numbers(weight.shape[0], seed=9)
        part.set_weight(to_integers(weight, scales, bits), scales, bias)
        high = part.activation_high
        middle = (high + 1) * 3 // 7 if zero_point is None else zero_point
        if part.input_zero_point is not None:
            part.set_zero_point(middle)
        if part.input_scale is not None:
            each = torch.linspace(0.8, 1.6, SLOTS * BRANCHES) * 6 / high
            part.input_scale = each if part.follows_time else each[0]


def moment(rows: int) -> Moment:
    row = torch.arange(rows, device=DEVICE) % SLOTS
    return Moment(row, row % BRANCHES, row, torch.ones(rows, dtype=torch.bool, device=DEVICE))


def pair(layer: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Once]:
    """A module that holds the layer, by definition; the same with kernels; and what the latter rounds once."""
    defined = nn.Sequential(layer).eval().requires_grad_(False).to(DEVICE)
    bind(defined, MomentHolder())
    once, fast = Once(), copy.deepcopy(defined)
    bind(fast, MomentHolder())
    install(fast, once, dtype, Switch())
    return defined, fast, once


def run(module: nn.Module, x: Tensor) -> Tensor:
    for part in module.modules():
        if hasattr(part, "holder"):
            part.holder.now = moment(x.shape[0])  # type: ignore[union-attr]
    with torch.no_grad():
        output: Tensor = module(x.to(DEVICE))
    return output


def assert_alike(layer: nn.Module, *inputs: Tensor, exact: bool = True) -> nn.Module:
    """Both give the same but for the rounding of float32; not `exact`: inputs may round otherwise here and there."""
    defined, fast, _ = pair(layer)
    for x in inputs:
        found, expected = run(fast, x), run(defined, x)
        assert found.shape == expected.shape and found.dtype is torch.float32
        if exact:
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.norm()))
        else:
            assert float((found - expected).norm() / expected.norm()) < 0.005
    return fast


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linears(grid: InputGrid, bits: int, bias: bool) -> None:
    layer = empty_like(nn.Linear(37, 21, bias=bias), grid, "cpu")
    fill(layer, bits)
    x = numbers(3, 7, 37)
    fast = assert_alike(layer, x, x[:, 0], x[:, :, None], x[:1], x[:0])
    (made,) = (part for part in fast.modules() if isinstance(part, KernelLinear))
    assert made.packed == (bits == 4) and made.integers.nbytes == 21 * (37 if bits == 8 else 19)


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_zero_points_at_the_ends(zero_point: int) -> None:
    for grid in (GRIDS["one scale"], GRIDS["tokens"]):
        layer = empty_like(nn.Linear(20, 6), grid, "cpu")
        fill(layer, 8, zero_point)
        assert_alike(layer, numbers(2, 5, 20))


CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "3x3": lambda: nn.Conv2d(5, 11, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(9, 8, 1),
    "1x1 strided": lambda: nn.Conv2d(9, 8, 1, stride=2),
    "uneven": lambda: nn.Conv2d(4, 3, (2, 5), stride=(2, 1), padding=(0, 3), dilation=(3, 1)),
}


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS)
@pytest.mark.parametrize("grid", [name for name in GRIDS if name != "float inputs"])
def test_convolutions(conv: Callable[[], nn.Conv2d], grid: str) -> None:
    like = conv()
    layer = empty_like(like, GRIDS[grid], "cpu")
    fill(layer, 4 if grid == "tokens" else 8)
    x = numbers(3, like.in_channels, 8, 6)
    fast = assert_alike(layer, x, x.contiguous(memory_format=torch.channels_last), x[:1], x[:, :, ::2])
    assert run(fast, x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("like", [nn.Linear(24, 6), nn.Conv2d(24, 6, 3, padding=1)], ids=["linear", "conv"])
def test_split_layers(like: nn.Linear | nn.Conv2d) -> None:
    layer = empty_like(like, InputGrid(8, slots=3), "cpu", sizes=(16, 8))
    fill(layer, 4)
    fast = assert_alike(layer, numbers(2, 24, 5, 4) if isinstance(like, nn.Conv2d) else numbers(2, 5, 24))
    assert len([part for part in fast.modules() if isinstance(part, KernelLayer)]) == 2


def behind(transform: InputTransform, grid: InputGrid, outputs: int = 10) -> Transformed:
    inner = empty_like(nn.Linear(transform.width, outputs), grid, "cpu")
    fill(inner, 8)
    return Transformed(inner, transform)


def signed(block: int) -> Blocks:
    return Blocks(hadamard(block, seed=3))


@pytest.mark.parametrize("grid", [GRIDS["one scale"], GRIDS["tokens"], GRIDS["scales in time"]], ids=str)
def test_block_rotations_are_computed_on_the_way(grid: InputGrid) -> None:
    factors = numbers(48, seed=7).abs() + 0.5
    for transform in (
        InputTransform(48, blocks=signed(16), randomized=True),
        InputTransform(48, factors, signed(8), randomized=True),
        InputTransform(48, factors),
    ):
        fast = assert_alike(behind(transform, grid), numbers(2, 7, 48), exact=False)
        (made,) = fast.children()
        assert isinstance(made, KernelLinear) and made.integers.shape == (10, 48)


def test_other_transforms_are_computed_before() -> None:
    rows = numbers(64, 32)
    transforms = (
        InputTransform(32, blocks=greedy(rows, 8, 0)),
        InputTransform(32, blocks=Blocks(hadamard(8))),
        InputTransform(512, blocks=signed(512), randomized=True),
    )
    for transform in transforms:
        fast = assert_alike(behind(transform, GRIDS["tokens"]), numbers(2, 5, transform.width), exact=False)
        (made,) = fast.children()
        assert isinstance(made, Transformed) and isinstance(made.inner, KernelLinear)
        assert isinstance(made.transform, SharedTransform)


def test_float_inputs_keep_their_transform() -> None:
    fast = assert_alike(
        behind(InputTransform(48, blocks=signed(16), randomized=True), GRIDS["float inputs"]), numbers(2, 48)
    )
    assert isinstance(next(fast.children()), Transformed)


class Projections(nn.Module):
    """Queries, keys and values of one input."""

    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module

    def __init__(self, transform: InputTransform | None, grid: InputGrid) -> None:
        super().__init__()
        for place, name in enumerate(("to_q", "to_k", "to_v")):
            inner = empty_like(nn.Linear(32, 8), grid, "cpu")
            fill(inner, 8)
            layer = inner if transform is None else Transformed(inner, transform, leads=place == 0)
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.to_q(x), self.to_k(x), self.to_v(x)], -1)


@pytest.mark.parametrize("kind", ["plain", "fused", "before"])
def test_one_input_is_rounded_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"plain": None, "fused": InputTransform(32, blocks=signed(8), randomized=True)}
    transform = kinds.get(kind, InputTransform(32, blocks=greedy(numbers(64, 32), 8, 0)))
    defined, fast, once = pair(Projections(transform, GRIDS["tokens"]))
    rounded: list[int] = []
    quantize = kernels.quantize_tokens

    def counted(*arguments: object) -> tuple[Tensor, Tensor]:
        rounded.append(1)
        return quantize(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_layers, "quantize_tokens", counted)
    x = numbers(2, 5, 32).to(DEVICE)
    first = run(fast, x)
    assert len(rounded) == 1
    assert float((first - run(defined, x)).norm() / first.norm()) < 0.005
    x *= 2  # the same tensor with other numbers is another input
    assert torch.allclose(run(fast, x), run(defined, x), atol=0.05)
    assert len(rounded) == 2
    once.forget()
    run(fast, x)
    assert len(rounded) == 3


def test_what_was_rounded_is_not_kept_for_another_tensor() -> None:
    once = Once()
    x = numbers(3)
    assert once.get(x, "a", lambda: 1) == 1
    assert once.get(x, "a", lambda: 2) == 1
    assert once.get(x, "b", lambda: 3) == 3
    assert once.get(x.clone(), "a", lambda: 4) == 4
    assert once.get(x, "a", lambda: 5) == 5


def grouped() -> QuantizedLayer:
    layer = empty_like(nn.Conv2d(4, 4, 3, groups=2), InputGrid(8), "cpu")
    fill(layer, 8)
    assert isinstance(layer, QuantizedLayer)
    return layer


def with_offsets() -> QuantizedLayer:
    layer = empty_like(nn.Linear(4, 3), InputGrid(8), "cpu")
    fill(layer, 8)
    assert isinstance(layer, QuantizedLayer)
    layer.zero_points = torch.ones(3, dtype=torch.int8)
    return layer


def of_kind(like: nn.Linear | nn.Conv2d, grid: InputGrid) -> Quantized:
    layer = empty_like(like, grid, "cpu")
    fill(layer, 8)
    return layer


def stepwise() -> QuantizedLayer:
    layer = StepwiseLinear((3, 4), False, 8, SLOTS, "cpu")
    layer.set_weight(torch.ones(3, 4, dtype=torch.int8), torch.ones(3), None)
    layer.set_grids(torch.full((SLOTS,), 0.1), torch.full((SLOTS,), 9))
    return layer


def published() -> nn.Module:
    parts = [behind(InputTransform(4), GRIDS["tokens"]) for _ in range(2)]
    return PublishedLayer(parts, torch.tensor([0, 0, 0]))


REASONS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "groups": (grouped, "its channels go in 2 groups", (2, 4, 5, 5)),
    "offsets": (with_offsets, "its output channels have zero points", (2, 4)),
    "own zero points": (
        lambda: of_kind(nn.Linear(4, 3), InputGrid(8, grain="token", zero_point="token")),
        "each token has a zero point of its own",
        (2, 4),
    ),
    "float pictures": (
        lambda: of_kind(nn.Conv2d(4, 3, 3), InputGrid(None)),
        "it is a convolution of inputs that stay float",
        (2, 4, 5, 5),
    ),
    "stepwise": (stepwise, "kernels know linears and convolutions, not StepwiseLinear", (2, 4)),
    "published": (published, "its weights are others in each range of time", (2, 4)),
}


@pytest.mark.parametrize(("make", "reason", "shape"), REASONS.values(), ids=REASONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_kernel_runs_is_told_and_computed_in_float(
    make: Callable[[], nn.Module], reason: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    defined = nn.Sequential(make()).eval().to(DEVICE)
    bind(defined, MomentHolder())
    fast = copy.deepcopy(defined)
    bind(fast, MomentHolder())
    installed = install(fast, Once(), dtype, Switch())
    assert dict(installed.float_layers) == {"0": reason} and not installed.kernels
    x = numbers(*shape).to(dtype)
    found = run(fast, x)
    assert found.dtype is dtype
    assert torch.equal(found, run(defined, x.float()).to(dtype))
    if dtype is torch.bfloat16:
        assert isinstance(fast[0], FloatArithmetic) and fast[0].weight.dtype is dtype


def test_models_in_half_precision() -> None:
    layer = empty_like(nn.Linear(40, 20), GRIDS["tokens"], "cpu")
    fill(layer, 8)
    defined, fast, _ = pair(nn.Sequential(layer, nn.LayerNorm(20)), torch.bfloat16)
    x = numbers(2, 5, 40).bfloat16()
    found, expected = run(fast, x), run(defined, x.float())
    assert found.dtype is torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.01
    (made,) = (part for part in fast.modules() if isinstance(part, KernelLinear))
    assert made.weight.dtype is torch.bfloat16 and made.weight.numel() == 0
    assert made.channel_scale.dtype is torch.float32


def test_moments_of_other_rows_are_refused() -> None:
    layer = empty_like(nn.Linear(4, 3), GRIDS["scales in time"], "cpu")
    fill(layer, 8)
    _, fast, _ = pair(layer)
    (made,) = (part for part in fast.modules() if isinstance(part, KernelLinear))
    made.holder.now = moment(2)
    with pytest.raises(BackendError, match="an input of 3 rows meets a moment of 2 rows"):
        made(numbers(3, 4).to(DEVICE))
    picture = KernelConv(grouped_free(), Once(), torch.float32)
    with pytest.raises(BackendError, match=r"takes \[B, C, H, W\], not \[4, 5, 5\]"):
        picture(numbers(4, 5, 5))


def grouped_free() -> QuantizedConv2d:
    layer = empty_like(nn.Conv2d(4, 4, 3), InputGrid(8), "cpu")
    fill(layer, 8)
    assert isinstance(layer, QuantizedConv2d)
    return layer


def test_compiled_graphs_do_not_break() -> None:
    transform = InputTransform(32, blocks=signed(8), randomized=True)
    _, fast, _ = pair(nn.Sequential(Projections(transform, GRIDS["tokens"]), nn.SiLU()))
    x = numbers(2, 5, 32).to(DEVICE)
    eager = run(fast, x)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), eager)
