"""Rotary embeddings in OpenVINO graphs: two strided assignments become two products. Must not know models.

Wan rotates pairs of neighbouring channels, x1 and x2, by writing x1 c - x2 s into the even channels of an empty tensor
and x1 s + x2 c into the odd ones. OpenVINO has each of these scatter number by number, and splits the pairs by its
reference code: an eighth of the time of a call. The same numbers are x C + (x P) S, where C and S hold every c and s
twice and P exchanges the channels of a pair, with a sign: products of small matrices, exact, as each sum has one term.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from quant.backends.nodes import number
from quant.backends.runtime import openvino

BLOCK: Final = 16
"""Channels that P exchanges at once: the fastest of 16 to 128 by a third and more."""


class _Rotary(NamedTuple):
    """What is rotated [..., D], by which cosines and sines [..., D / 2], and the output that holds the result."""

    x: Any
    cosine: Any
    sine: Any
    result: Any


def rewrite(model: Any) -> int:
    """Rewrites, in place, each such embedding of an `openvino.Model`; returns how many there were."""
    found = [
        rotary
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ScatterNDUpdate" and (rotary := _matched(node)) is not None
    ]
    for rotary in found:
        rotary.result.replace(_rotated(rotary))
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


def _rotated(rotary: _Rotary) -> Any:
    ops, width, rank = openvino.opset13, _shape(rotary.x)[-1].get_length(), len(_shape(rotary.x))
    block = math.gcd(width, BLOCK)
    turn = np.zeros((block, block), np.float32)
    even = np.arange(0, block, 2)
    turn[even + 1, even], turn[even, even + 1] = -1.0, 1.0
    apart = ops.reshape(rotary.x, ops.constant([0] * (rank - 1) + [width // block, block], np.int64), True)
    turned = ops.matmul(apart, ops.constant(turn), False, False)
    turned = ops.reshape(turned, ops.constant([0] * (rank - 1) + [width], np.int64), True)
    straight = ops.multiply(rotary.x, _twice(rotary.cosine, width))
    return ops.add(straight, ops.multiply(turned, _twice(rotary.sine, width))).output(0)


def _twice(halves: Any, width: int) -> Any:
    """[..., D / 2] with every number twice in a row."""
    ops, rank = openvino.opset13, len(halves.get_partial_shape())
    each = ops.unsqueeze(halves, ops.constant([-1], np.int64))
    return ops.reshape(ops.concat([each, each], -1), ops.constant([0] * (rank - 1) + [width], np.int64), True)


def _matched(odd: Any) -> _Rotary | None:
    """The embedding that a scatter ends, if it does: it fills the odd channels after another one filled the even."""
    even = _through(odd.input_value(0), "Reshape").get_node()
    (end, *others) = odd.output(0).get_target_inputs() or [None]
    if end is None or others or end.get_node().get_type_name() != "Reshape":
        return None
    result = end.get_node().output(0)
    total, difference = _assigned(odd, 1, result), _assigned(even, 0, result)
    if total is None or difference is None:
        return None
    ahead, across = _weighed(difference, "Subtract"), _weighed(total, "Add")
    if ahead is None or across is None:
        return None
    (first, cosine), (second, sine) = ahead
    x = _pairs(first, second)
    if set(across) != {(first, sine), (second, cosine)} or x is None or _shape(x) != _shape(result):
        return None
    return _Rotary(x, cosine, sine, result)


def _assigned(scatter: Any, begin: int, whole: Any) -> Any:
    """What a scatter writes to every second number, from `begin` on, along the last axis of tensors like `whole`; None
    if it is no such scatter.
    """
    if scatter.get_type_name() != "ScatterNDUpdate":
        return None
    places = _through(scatter.input_value(1), "Reshape").get_node()
    if places.get_type_name() != "Slice" or _shape(places.input_value(0)) != _shape(whole):
        return None
    start, stop, step, axis = (number(value) for value in places.input_values()[1:5])
    width = _width(whole)
    counted = _through(places.input_value(0), "Reshape").get_node()
    ends_last = stop is not None and width is not None and stop >= width and axis in (-1, len(_shape(whole)) - 1)
    if (start, step) != (begin, 2) or not ends_last or counted.get_type_name() != "Range":
        return None
    if (number(counted.input_value(0)), number(counted.input_value(2))) != (0, 1):
        return None
    return _through(scatter.input_value(2), "Reshape", "Broadcast")


def _weighed(value: Any, joined: str) -> list[tuple[Any, Any]] | None:
    """(channels, weights) of both products whose difference or sum a value is; None if it is none such."""
    node, found = value.get_node(), []
    if node.get_type_name() != joined:
        return None
    for product in node.input_values():
        if product.get_node().get_type_name() != "Multiply":
            return None
        sides = product.get_node().input_values()
        channels = [side for side in sides if side.get_node().get_type_name() == "Squeeze"]
        if len(channels) != 1:
            return None
        found.append((channels[0], next(side for side in sides if side != channels[0])))
    return found


def _pairs(first: Any, second: Any) -> Any:
    """What was split into first and second channels of pairs [..., D]; None if nothing was."""
    one, other = (value.get_node().input_value(0) for value in (first, second))
    split = one.get_node()
    if split.get_type_name() != "Split" or other.get_node() != split or (one.get_index(), other.get_index()) != (0, 1):
        return None
    pairs = split.input_value(0)
    if _width(pairs) != 2 or pairs.get_node().get_type_name() != "Reshape":
        return None
    x, axis, rank = pairs.get_node().input_value(0), number(split.input_value(1)), len(_shape(pairs))
    if axis not in (-1, rank - 1) or _width(x) is None or len(_shape(x)) != rank - 1:
        return None
    # of as many numbers the last dimension alone was cut in pairs, where those before it stayed
    return x if list(_shape(x))[:-1] == list(_shape(pairs))[:-2] else None


def _through(value: Any, *kinds: str) -> Any:
    """What comes out before nodes of these kinds."""
    while value.get_node().get_type_name() in kinds:
        value = value.get_node().input_value(0)
    return value


def _width(value: Any) -> int | None:
    """The last dimension, where it is known."""
    shape = _shape(value)
    if shape.rank.is_dynamic or len(shape) == 0 or shape[-1].is_dynamic:
        return None
    return int(shape[-1].get_length())


def _shape(value: Any) -> Any:
    return value.get_partial_shape()
