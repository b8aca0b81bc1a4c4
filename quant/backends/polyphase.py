"""Convolutions of doubled pictures, computed at the size before. Must not know models.

A UNet goes up by doubling a picture (nearest neighbour) and a convolution of 3x3. Each of its four outputs for a pixel
sees 2x2 pixels of the picture before: four convolutions of 2x2, whose weights are sums of the nine, take 16 products in
place of 36 (the polyphase form of an interpolator). Sums that 8 bits hold are exact, as of 4-bit weights; others are
rounded again, for each of the four with scales of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.backends import kernels, padding
from quant.backends.nodes import Weight, factor_of_rows, number, only_reader, shape_of, weight_of
from quant.backends.runtime import openvino

WORTH: Final = 1 << 25
"""Multiply-adds of a row from which on it is done: for fewer, four kernels start slower than they save."""

_TAPS: Final = (((0,), (1, 2)), ((0, 1), (2,)))
"""For even and odd places along one side: which of three weights meet each of the two pixels before."""

_PHASES: Final = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Places of a pixel's four outputs, 0 even and 1 odd, from top to bottom and from left to right."""

_HIGH: Final = 127


class _Doubled(NamedTuple):
    """A picture before it is doubled, and what follows.

    Attributes:
        x: [rows, in, height, width].
        inverse: what it is multiplied by before it is rounded, a number for each row; None where nothing is.
        rounded: what rounds it.
        convolution: what alone reads that.
        weight: of the convolution.
    """

    x: Any
    inverse: Any | None
    rounded: Any
    convolution: Any
    weight: Weight


def rewrite(model: Any) -> int:
    """Rewrites, in place, each such convolution of an `openvino.Model` of fixed shapes; returns how many there were."""
    found = [
        doubled
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Interpolate" and (doubled := _matched(node)) is not None
    ]
    for doubled in found:
        _rewrite(doubled)
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


def _rewrite(doubled: _Doubled) -> None:
    x = doubled.x
    if doubled.inverse is not None:
        x = openvino.opset13.multiply(x, doubled.inverse).output(0)
    product = only_reader(doubled.convolution)
    now = factor_of_rows(product, doubled.convolution)
    if product is not None and now is not None and padding.has_zero_point(doubled.rounded):
        product.output(0).replace(_from_least(doubled, x, now))
    else:
        doubled.convolution.output(0).replace(_plainly(doubled, x))


def _plainly(doubled: _Doubled, x: Any) -> Any:
    """The convolution's output."""
    ops, told = openvino.opset13, doubled.rounded.get_attributes()
    ends = doubled.rounded.input_values()[1:]
    rounded = ops.fake_quantize(x, *ends, told["levels"], told["auto_broadcast"])
    return _together([ops.convolution(rounded, part.constant(), *geometry) for part, geometry in _parts(doubled)])


def _from_least(doubled: _Doubled, x: Any, now: Any) -> Any:
    """The convolution's output times each row's scale, its integers without a zero point."""
    counted, zero = padding.counted_from_least(doubled.rounded, x)
    parts = [padding.convolved(counted, zero, part, geometry) for part, geometry in _parts(doubled)]
    border = _interleaved([border for _, border in parts])
    return padding.scaled(_together([sums for sums, _ in parts]), border, now)


def _parts(doubled: _Doubled) -> Iterator[tuple[Weight, padding.Geometry]]:
    """Weights of 2x2, and how each moves over the picture before."""
    for row, column in _PHASES:
        geometry = padding.Geometry([1, 1], [1 - row, 1 - column], [row, column], [1, 1])
        yield folded(doubled.weight, row, column), geometry


def _together(phases: list[Any]) -> Any:
    """Four outputs [rows, out, height, width] as one of twice the size."""
    ops = openvino.opset13
    return ops.depth_to_space(ops.concat(phases, 1), "blocks_first", 2).output(0)


def _interleaved(phases: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The same of constants."""
    one = phases[0]
    whole = np.empty((*one.shape[:2], 2 * one.shape[2], 2 * one.shape[3]), np.float32)
    for phase, (row, column) in zip(phases, _PHASES, strict=True):
        whole[..., row::2, column::2] = phase
    return whole


def folded(weight: Weight, row: int, column: int) -> Weight:
    """The weight of 2x2 that a weight of 3x3 comes to, for outputs at even (0) or odd (1) rows and columns."""
    sums = np.zeros((*weight.integers.shape[:2], 2, 2), np.int16)
    for i, taps in enumerate(_TAPS[row]):
        for j, others in enumerate(_TAPS[column]):
            for tap in taps:
                for other in others:
                    sums[..., i, j] += weight.integers[..., tap, other]
    most = np.abs(sums).max(axis=(1, 2, 3), keepdims=True)
    step = np.maximum(most / _HIGH, 1.0).astype(np.float32)  # 1 where 8 bits hold all sums: nothing is rounded there
    return Weight(np.rint(sums / step).astype(np.int8), weight.scales * step)


def _matched(interpolate: Any) -> _Doubled | None:
    """The convolution that alone reads a doubled picture, if it is one of integers, 3x3, which keeps the size."""
    if not _doubles(interpolate):
        return None
    after = only_reader(interpolate)
    inverse = factor_of_rows(after, interpolate)
    rounded = after if inverse is None else only_reader(after)
    if rounded is None or rounded.get_type_name() != "FakeQuantize":
        return None
    convolution = only_reader(rounded)
    if convolution is None or not _keeps_size(convolution):
        return None
    weight = weight_of(convolution)
    if weight is None or any(number(end) is None for end in rounded.input_values()[1:]):
        return None
    return _Doubled(interpolate.input_value(0), inverse, rounded, convolution, weight)


def _doubles(node: Any) -> bool:
    """Whether it doubles height and width by nearest neighbours."""
    told, before, after = node.get_attributes(), shape_of(node.input_value(0)), shape_of(node.output(0))
    nearest = (told["mode"], told["coordinate_transformation_mode"], told["nearest_mode"])
    if nearest != ("nearest", "asymmetric", "floor") or any(told["pads_begin"]) or any(told["pads_end"]):
        return False
    return len(before) == 4 and min(before) > 0 and after == [*before[:2], 2 * before[2], 2 * before[3]]


def _keeps_size(node: Any) -> bool:
    """Whether it is a convolution of 3x3 with a padding of 1, and large enough to be worth it."""
    if node.get_type_name() != "Convolution" or shape_of(node.input_value(1))[2:] != [3, 3]:
        return False
    rows = shape_of(node.output(0))[0]
    kept = padding.Geometry.of(node) == padding.Geometry([1, 1], [1, 1], [1, 1], [1, 1])
    return kept and rows > 0 and kernels.of_operation(node) >= WORTH * rows
