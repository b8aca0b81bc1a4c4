"""Convolutions of integers with a zero point, whose kernels compute the padding too. Must not know models.

Padding of zero stands for the integer of the zero point, so that kernels multiply it like all else: at 4x4 places of a
3x3 convolution that is a third of the products, at 8x8 a sixth. Integers counted from their least value have no zero
point, and their padding is skipped. What each sum then has too much is known: the same for all places but those at the
border, where some weights meet nothing.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from quant.backends.nodes import Weight, factor_of_rows, number, only_reader, shape_of, weight_of
from quant.backends.runtime import openvino

WORTH: Final = 0.97
"""Share of the products that are left, up to which it is done: more save less than the border costs."""


class Geometry(NamedTuple):
    """How a convolution moves over a picture, from top to bottom and from left to right."""

    strides: list[int]
    begin: list[int]
    end: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, convolution: Any) -> Self:
        """A convolution's."""
        told = convolution.get_attributes()
        return cls(*(told[name] for name in ("strides", "pads_begin", "pads_end", "dilations")))

    def met(self, side: int, size: int, taps: int) -> NDArray[np.float32]:
        """Whether a tap meets the picture, not its padding, for each place along a side: [taps, places] 0 or 1."""
        span = (taps - 1) * self.dilations[side] + 1
        places = np.arange((size + self.begin[side] + self.end[side] - span) // self.strides[side] + 1)
        seen = places * self.strides[side] + np.arange(taps)[:, None] * self.dilations[side] - self.begin[side]
        return ((seen >= 0) & (seen < size)).astype(np.float32)


class _Padded(NamedTuple):
    """A convolution of integers, what rounds its input, the product with each row's scale after it, and that scale."""

    convolution: Any
    rounded: Any
    product: Any
    now: Any
    weight: Weight


def rewrite(model: Any) -> int:
    """Rewrites, in place, each such convolution of an `openvino.Model` of fixed shapes; returns how many there were."""
    found = [
        padded
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution" and (padded := _matched(node)) is not None
    ]
    for padded in found:
        padded.product.output(0).replace(_from_least(padded))
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


def counted_from_least(rounded: Any, x: Any) -> tuple[Any, float]:
    """A tensor rounded as by `rounded`, but counted from the least value of its grid; and where zero lies then.

    Raises:
        ValueError: the grid has no such place, see `has_zero_point`.
    """
    if not has_zero_point(rounded):
        raise ValueError(f"{rounded.get_friendly_name()} has no zero point to do without")
    ops, told = openvino.opset13, rounded.get_attributes()
    low, high = rounded.input_values()[1:3]
    most = high.get_node().get_data() - low.get_node().get_data()
    ends = [low, high, ops.constant(np.zeros_like(most)), ops.constant(most)]
    counted = ops.fake_quantize(x, *ends, told["levels"], told["auto_broadcast"]).output(0)
    return counted, -float(low.get_node().get_data().item())


def has_zero_point(rounded: Any) -> bool:
    """Whether a rounding has one grid, that of its output, which begins below zero."""
    low, high, *ends = (number(value) for value in rounded.input_values()[1:])
    return low is not None and high is not None and low < 0.0 and ends == [low, high]


def convolved(x: Any, zero: float, weight: Weight, geometry: Geometry) -> tuple[Any, NDArray[np.float32]]:
    """A convolution of integers counted from their least value, right but at the border; and what to add there.

    Args:
        x: [rows, in, height, width].
        zero: where zero lies.
        weight: of the convolution.
        geometry: of it.

    Returns:
        the sums [rows, out, height', width'], and [1, out, height', width'] float32.
    """
    ops, numbers = openvino.opset13, weight.numbers
    sums = ops.convolution(x, weight.constant(), *geometry)
    whole = numbers.sum(axis=(1, 2, 3)).reshape(1, -1, 1, 1)
    sides = zip((0, 1), shape_of(x)[2:], numbers.shape[2:], strict=True)
    rows, columns = (geometry.met(side, size, taps) for side, size, taps in sides)
    met = np.einsum("oij,iy,jx->oyx", numbers.sum(axis=1), rows, columns)[None]
    exact = ops.add(sums, ops.constant(np.float32(-zero) * whole))  # kernels take it for a bias
    return exact.output(0), np.float32(zero) * (whole - met)


def scaled(sums: Any, border: NDArray[np.float32], now: Any) -> Any:
    """Such sums, with what is to be added at the border, times each row's scale."""
    ops = openvino.opset13
    return ops.add(ops.multiply(sums, now), ops.multiply(ops.constant(border), now)).output(0)


def _from_least(padded: _Padded) -> Any:
    counted, zero = counted_from_least(padded.rounded, padded.rounded.input_value(0))
    return scaled(*convolved(counted, zero, padded.weight, Geometry.of(padded.convolution)), padded.now)


def _matched(convolution: Any) -> _Padded | None:
    """The convolution with what stands around it, if it is one of integers, is padded, and has a zero point."""
    rounded, product = convolution.input_value(0).get_node(), only_reader(convolution)
    if rounded.get_type_name() != "FakeQuantize" or only_reader(rounded) is None or not has_zero_point(rounded):
        return None
    now, weight = factor_of_rows(product, convolution), weight_of(convolution)
    if now is None or weight is None or not _is_worth(convolution):
        return None
    return _Padded(convolution, rounded, product, now, weight)


def _is_worth(convolution: Any) -> bool:
    geometry = Geometry.of(convolution)
    sizes, taps = (shape_of(convolution.input_value(port))[2:] for port in (0, 1))
    if len(sizes) != 2 or min(sizes) < 1:
        return False
    shares = [geometry.met(side, sizes[side], taps[side]).mean() for side in (0, 1)]
    return bool(shares[0] * shares[1] <= WORTH)
