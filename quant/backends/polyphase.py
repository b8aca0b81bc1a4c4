"""Convolutions of doubled pictures, computed at the size before. Must not know models.

A UNet goes up by doubling a picture (nearest neighbour) and a convolution of 3x3. Each of its four outputs for a pixel
sees 2x2 pixels of the picture before: four convolutions of 2x2, whose weights are sums of the nine, take 16 products in
place of 36 (Shi et al., CVPR 2016, the other way round). Sums that 8 bits hold are exact, as of 4-bit weights; others
are rounded again, for each of the four with scales of its own.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.backends import kernels
from quant.backends.runtime import openvino

_TAPS: Final = ((((0,), (1, 2))), (((0, 1), (2,))))
"""For even and odd places along one side: which of three weights meet each of the two pixels before."""

_HIGH: Final = 127

WORTH: Final = 1 << 25
"""Multiply-adds of a row from which on it is done: for fewer, four kernels start slower than they save."""


class _Doubled(NamedTuple):
    """A picture before it is doubled, what rounds it (and may scale it first), and the convolution that follows."""

    x: Any
    scaled: Any | None
    rounded: Any
    convolution: Any
    integers: NDArray[np.int8]
    scales: NDArray[np.float32]


def rewrite(model: Any) -> int:
    """Rewrites, in place, each such convolution of an `openvino.Model` of fixed shapes; returns how many there were."""
    found = [
        doubled
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Interpolate" and (doubled := _matched(node)) is not None
    ]
    for doubled in found:
        doubled.convolution.output(0).replace(_by_phases(doubled))
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


def _by_phases(doubled: _Doubled) -> Any:
    ops, x = openvino.opset13, doubled.x
    if doubled.scaled is not None:
        x = ops.multiply(x, doubled.scaled).output(0)
    told = doubled.rounded.get_attributes()
    x = ops.fake_quantize(x, *doubled.rounded.input_values()[1:], told["levels"], told["auto_broadcast"]).output(0)
    outputs = []
    for row in (0, 1):
        for column in (0, 1):
            integers, scales = folded(doubled.integers, doubled.scales, row, column)
            weight = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scales))
            begin, end = [1 - row, 1 - column], [row, column]
            outputs.append(ops.convolution(x, weight, [1, 1], begin, end, [1, 1]))
    return ops.depth_to_space(ops.concat(outputs, 1), "blocks_first", 2).output(0)


def folded(
    integers: NDArray[np.int8], scales: NDArray[np.float32], row: int, column: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [out, in, 2, 2] int8 and their scales [out, 1, 1, 1] for outputs at even (0) or odd (1) places.

    Args:
        integers: [out, in, 3, 3].
        scales: [out, 1, 1, 1].
        row: of the places from top to bottom.
        column: of those from left to right.
    """
    sums = np.zeros((*integers.shape[:2], 2, 2), np.int16)
    for i, taps in enumerate(_TAPS[row]):
        for j, others in enumerate(_TAPS[column]):
            for tap in taps:
                for other in others:
                    sums[..., i, j] += integers[..., tap, other]
    most = np.abs(sums).max(axis=(1, 2, 3), keepdims=True)
    step = np.maximum(most / _HIGH, 1.0).astype(np.float32)  # 1 where 8 bits hold all sums: nothing is rounded there
    return np.rint(sums / step).astype(np.int8), scales * step


def _matched(interpolate: Any) -> _Doubled | None:
    """The convolution that alone reads a doubled picture, if it is one of integers, 3x3, which keeps the size."""
    if not _doubles(interpolate):
        return None
    after, scaled = _only_reader(interpolate), None
    if after is not None and after.get_type_name() == "Multiply":
        others = [value for value in after.input_values() if value.get_node() != interpolate]
        after, scaled = _only_reader(after), others[0] if len(others) == 1 else None
        if scaled is None or list(scaled.get_partial_shape())[1:] != [1, 1, 1]:
            return None
    if after is None or after.get_type_name() != "FakeQuantize":
        return None
    convolution = _only_reader(after)
    if convolution is None or not _keeps_size(convolution) or any(_size(one) != 1 for one in after.input_values()[1:]):
        return None
    if kernels.of_operation(convolution) < WORTH * list(convolution.output(0).get_shape())[0]:
        return None
    weight = _weight(convolution.input_value(1))
    return None if weight is None else _Doubled(interpolate.input_value(0), scaled, after, convolution, *weight)


def _doubles(node: Any) -> bool:
    told, before, after = node.get_attributes(), node.input(0).get_partial_shape(), node.output(0).get_partial_shape()
    nearest = (told["mode"], told["coordinate_transformation_mode"], told["nearest_mode"])
    if nearest != ("nearest", "asymmetric", "floor") or any(told["pads_begin"]) or any(told["pads_end"]):
        return False
    sides = list(zip(list(before), list(after), strict=True))
    return len(sides) == 4 and all(
        one.is_static and other.get_length() == 2 * one.get_length() for one, other in sides[2:]
    )


def _keeps_size(node: Any) -> bool:
    if node.get_type_name() != "Convolution" or node.input_value(0).get_node().get_type_name() != "FakeQuantize":
        return False
    told = node.get_attributes()
    kept = [told[name] == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end")]
    return all(kept) and list(node.input(1).get_shape())[2:] == [3, 3]


def _weight(value: Any) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """Integers and scales of a convolution's weight; None if it has none, or zero points."""
    product = value.get_node()
    if product.get_type_name() != "Multiply":
        return None
    widened, scales = (one.get_node() for one in product.input_values())
    if (widened.get_type_name(), scales.get_type_name()) != ("Convert", "Constant"):
        return None
    integers = widened.input_value(0).get_node()
    if integers.get_type_name() != "Constant" or integers.get_element_type() != openvino.Type.i8:
        return None
    numbers = scales.get_data()
    return (integers.get_data(), numbers) if numbers.shape[1:] == (1, 1, 1) else None


def _only_reader(node: Any) -> Any | None:
    """What reads a node's output, if one node alone does."""
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _size(value: Any) -> int:
    node = value.get_node()
    return int(node.get_data().size) if node.get_type_name() == "Constant" else 0
