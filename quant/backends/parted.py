"""Products whose output is cut in parts at once: a product for each part. Must not know models.

Gated feed-forwards (GEGLU, SwiGLU) make both halves in one product and cut it in two, for which OpenVINO copies all of
it, and which keeps what follows from being one kernel: scales, biases, the gate and the next rounding. The weights are
cut instead: the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from quant.backends.nodes import number, only_reader, shape_of
from quant.backends.runtime import openvino

WORTH: Final = 1 << 16
"""Numbers of a row that are cut, from which on it is done: fewer are copied faster than another product starts."""

_ELEMENTWISE: Final = ("Add", "Subtract", "Multiply", "Divide")


class _Whole(Exception):
    """A value that cannot be made in parts."""


class _Part(NamedTuple):
    """Which of so many numbers along an axis."""

    begin: int
    end: int
    width: int


def rewrite(model: Any) -> int:
    """Rewrites, in place, each such cut of an `openvino.Model` of fixed shapes; returns how many there were."""
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Split", "VariadicSplit") and _is_worth(node):
            try:
                parts = [_columns(node.input_value(0), part) for part in _parts(node)]
            except _Whole:  # nothing was changed: it stays one product, which computes the same
                continue
            for output, part in zip(node.outputs(), parts, strict=True):
                output.replace(part)
            found += 1
    if found:
        model.validate_nodes_and_infer_types()
    return found


def _is_worth(split: Any) -> bool:
    """Whether it cuts enough numbers along the last axis."""
    value, axis = split.input_value(0), split.input_value(1)
    shape = shape_of(value)
    if number(axis) not in (-1, len(shape) - 1) or min(shape, default=-1) < 0:
        return False
    return math.prod(shape[1:]) >= WORTH


def _parts(split: Any) -> Iterator[_Part]:
    begin, width = 0, shape_of(split.input_value(0))[-1]
    for output in split.outputs():
        length = shape_of(output)[-1]
        if length < 0:
            raise _Whole
        yield _Part(begin, begin + length, width)
        begin += length


def _columns(value: Any, part: _Part) -> Any:
    """Some numbers along the last axis of a value."""
    node, ops = value.get_node(), openvino.opset13
    kind = node.get_type_name()
    if kind == "Constant":
        return _sliced(node, part, -1)
    if (shape_of(value) or [1])[-1] == 1:
        return value
    if only_reader(node) is None or kind not in (*_ELEMENTWISE, "MatMul"):
        raise _Whole
    one, other = node.input_values()
    if kind == "MatMul":
        told = node.get_attributes()
        if told["transpose_a"] or not told["transpose_b"]:
            raise _Whole
        return ops.matmul(one, _rows(other, part), False, True).output(0)
    return _again(node, _columns(one, part), _columns(other, part))


def _rows(weight: Any, part: _Part) -> Any:
    """Some rows of a weight that is made of constants."""
    node = weight.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return _sliced(node, part, 0)
    if kind == "Convert":
        return openvino.opset13.convert(_rows(node.input_value(0), part), weight.get_element_type()).output(0)
    if kind in _ELEMENTWISE and len(shape_of(weight)) == 2:
        return _again(node, *(_rows(one, part) for one in node.input_values()))
    raise _Whole


def _again(node: Any, one: Any, other: Any) -> Any:
    """An elementwise node with other inputs."""
    make = getattr(openvino.opset13, node.get_type_name().lower())
    return make(one, other).output(0)


def _sliced(constant: Any, part: _Part, axis: int) -> Any:
    """A constant's part along an axis; the constant where it has one number there, for all."""
    output = constant.output(0)
    shape = shape_of(output)
    if not shape or shape[axis] == 1:
        return output
    if shape[axis] != part.width:
        raise _Whole
    data = constant.get_data()
    cut = data[part.begin : part.end] if axis == 0 else data[..., part.begin : part.end]
    return openvino.opset13.constant(np.ascontiguousarray(cut), dtype=output.get_element_type()).output(0)
