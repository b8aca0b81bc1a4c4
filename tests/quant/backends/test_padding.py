"""Convolutions with a zero point, counted from the least integer: the same numbers, border included; others left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends import kernels, padding
from quant.backends.padding import Geometry
from tests.quant.backends.graphs import answer, by_torch, call_of, compiled, convolution, graph, rewritten

SHAPES = {
    "usual": (nn.Conv2d(6, 8, 3, padding=1), (5, 4)),
    "one place": (nn.Conv2d(6, 8, 3, padding=1), (1, 1)),
    "stride": (nn.Conv2d(6, 8, 3, padding=1, stride=2), (7, 6)),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=2), (6, 7)),
    "uneven": (nn.Conv2d(6, 8, (1, 5), padding=(0, 2)), (3, 8)),
    "more padding than picture": (nn.Conv2d(6, 8, 5, padding=4), (3, 3)),
    "no bias": (nn.Conv2d(6, 8, 3, padding=1, bias=False), (4, 4)),
}


class Alone(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sample: Tensor) -> Tensor:
        output: Tensor = self.layer(sample)
        return output


def picture(height: int, width: int, rows: int = 4, channels: int = 6) -> Tensor:
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(7)) + 0.5


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_numbers_at_the_border_too(name: str) -> None:
    like, size = SHAPES[name]
    module, call = Alone(convolution(like, high=3.0)), call_of(picture(*size))
    model, count = rewritten(module, call, padding.rewrite)
    assert count == 1
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-4, atol=1e-4)


def test_kernels_still_take_integers() -> None:
    module, call = Alone(convolution(nn.Conv2d(32, 32, 3, padding=1))), call_of(picture(8, 8, channels=32))
    model, count = rewritten(module, call, padding.rewrite)
    assert count == 1
    assert kernels.int8_multiply_adds(compiled(model)) == kernels.multiply_adds(model) > 0


@pytest.mark.parametrize(
    ("like", "how"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), {"zero_point": 0}),
        (nn.Conv2d(6, 8, 3, padding=1), {"steps": False}),
        (nn.Conv2d(6, 8, 3), {}),
        (nn.Conv2d(6, 8, 1), {}),
    ],
    ids=["no zero point", "one scale", "no padding", "one tap"],
)
def test_others_stay(like: nn.Conv2d, how: dict[str, int]) -> None:
    module, call = Alone(convolution(like, **how)), call_of(picture(6, 5))
    model, count = rewritten(module, call, padding.rewrite)
    assert count == 0
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-4, atol=1e-4)


def test_float_convolutions_stay() -> None:
    module, call = tiny_denoiser("sd15", rows=2)
    assert rewritten(module, call, padding.rewrite)[1] == 0
    assert "Convolution" in {node.get_type_name() for node in graph(module, call).get_ops()}


def test_it_is_done_where_enough_products_are_padding_whatever_the_rows() -> None:
    small, large = (Alone(convolution(nn.Conv2d(2, 2, 3, padding=1))) for _ in range(2))
    for rows in (1, 3):
        assert rewritten(small, call_of(picture(32, 32, rows, 2)), padding.rewrite)[1] == 1
        assert rewritten(large, call_of(picture(64, 64, rows, 2)), padding.rewrite)[1] == 0


def test_which_taps_meet_the_picture() -> None:
    plain = Geometry([1, 1], [1, 1], [1, 1], [1, 1])
    assert plain.met(0, 4, 3).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    wide = Geometry([2, 1], [0, 1], [1, 0], [1, 2])
    assert wide.met(0, 4, 2).tolist() == [[1, 1], [1, 1]]
    assert wide.met(1, 4, 2).tolist() == [[0, 1, 1], [1, 1, 1]]


def test_an_input_without_zero_point_is_refused() -> None:
    module, call = Alone(convolution(nn.Conv2d(6, 8, 3, padding=1), zero_point=0)), call_of(picture(4, 4))
    rounded = next(node for node in graph(module, call).get_ordered_ops() if node.get_type_name() == "FakeQuantize")
    assert not padding.has_zero_point(rounded)
    with pytest.raises(ValueError, match="no zero point"):
        padding.counted_from_least(rounded, rounded.input_value(0))


def test_pictures_do_not_depend_on_their_company() -> None:
    module = Alone(convolution(nn.Conv2d(6, 8, 3, padding=1)))
    sample = picture(4, 4, rows=6)
    call = call_of(sample)
    whole = answer(rewritten(module, call, padding.rewrite)[0], call)
    few = call.take(torch.tensor([2, 5]))
    assert torch.equal(answer(rewritten(module, few, padding.rewrite)[0], few), whole[[2, 5]])
    assert float(quant.relative_errors(whole, by_torch(module, call)).max()) < 1e-5
