"""Convolutions of int8: exact sums over windows of every kind, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.kernels import reference
from quant.kernels.forms import After
from quant.kernels.int8_conv import Window, int8_conv
from tests.quant.kernels.on import DEVICE, check_operator

WINDOWS: dict[str, tuple[tuple[int, int], Window]] = {
    "1x1": ((1, 1), Window()),
    "3x3": ((3, 3), Window(padding=(1, 1))),
    "strided": ((3, 3), Window((2, 2), (1, 1))),
    "uneven": ((2, 5), Window((2, 1), (0, 3), (3, 1))),
    "all padding at the edge": ((1, 1), Window(padding=(2, 1))),
}
PICTURES = [(1, 1, 1, 1), (2, 7, 6, 5), (0, 7, 6, 5), (1, 9, 4, 70), (3, 5, 8, 16)]


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.int8)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def flat(window: Window) -> tuple[int, int, int, int, int, int]:
    return (*window.stride, *window.padding, *window.dilation)


@pytest.mark.parametrize(("taps", "window"), WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_integer_sums_are_exact(picture: tuple[int, ...], taps: tuple[int, int], window: Window) -> None:
    spans = [
        size + 2 * pad - apart * (tap - 1)
        for size, pad, apart, tap in zip(picture[1:3], *window[1:], taps, strict=True)
    ]
    x, weight = integers(*picture), integers(9, *taps, picture[3], seed=1)
    ones = torch.ones(9, device=DEVICE)
    if min(spans) < 1:
        with pytest.raises(ValueError, match="does not fit a picture of 1 x 1"):
            int8_conv(x, weight, ones, -7, window)
        return
    expected = reference.conv(x, weight, ones, -7, flat(window))
    assert torch.equal(int8_conv(x, weight, ones, -7, window), expected)


def test_what_follows_the_sums() -> None:
    window, x, weight = Window((2, 1), (1, 1)), integers(2, 5, 6, 12), integers(7, 3, 3, 12, seed=1)
    rows = 2 * 3 * 6
    for count in (1, 2):
        after = After(
            numbers(count, seed=2).abs() * 1e-3,
            integers(7, seed=3).int() * 100,
            numbers(7, seed=4),
            "silu",
            numbers(rows, 7, seed=5),
            numbers(count, 7, seed=6),
        )
        expected = reference.conv(x, weight, numbers(7), 3, flat(window), after, torch.float16)
        found = int8_conv(x, weight, numbers(7), 3, window, after, torch.float16)
        assert found.dtype is torch.float16 and found.shape == (2, 3, 6, 7)
        assert torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=2e-3)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, scales = integers(1, 4, 4, 8), integers(3, 3, 3, 4), numbers(3)
    with pytest.raises(
        ValueError, match=r"pictures of 8 channels do not fit weights of 4 \(groups of channels have no"
    ):
        int8_conv(x, weight, scales, 0, Window())
    with pytest.raises(ValueError, match=r"pictures of 7 channels do not fit weights of 4$"):
        int8_conv(x[..., :7], weight, scales, 0, Window())
    with pytest.raises(ValueError, match="must be int8 of 4 dimensions"):
        int8_conv(x.float(), weight, scales, 0, Window())
    with pytest.raises(ValueError, match="must be an int8, not 128"):
        int8_conv(x[..., :4].contiguous(), weight, scales, 128, Window())
    with pytest.raises(ValueError, match="rows must be contiguous"):
        int8_conv(x[..., :4], weight, scales, 0, Window())
    with pytest.raises(ValueError, match="does not fit a picture"):
        int8_conv(x[..., :4].contiguous(), weight, scales, 0, Window(stride=(0, 1)))


def test_compiled_graphs_do_not_break_and_operators_keep_their_promises() -> None:
    x, weight, scales = integers(1, 4, 4, 8), integers(3, 3, 3, 8), numbers(3)

    def twice(x: Tensor) -> Tensor:
        return int8_conv(x, weight, scales, 5, Window(padding=(1, 1)), After(bias=scales), torch.bfloat16) * 2

    assert torch.equal(torch.compile(twice, fullgraph=True, backend="eager")(x), twice(x))
    rest = (None, None, scales, "none", None, None, torch.float32)
    check_operator(torch.ops.halftone.int8_conv.default, (x, weight, scales, 5, [1, 1, 1, 1, 1, 1], *rest))
