"""What rewriting asks of nodes of an OpenVINO graph. Must not know what is rewritten, nor models."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.backends.runtime import openvino


class Weight(NamedTuple):
    """A convolution's weight of integers.

    Attributes:
        integers: [out, in, kh, kw] int8.
        scales: [out, 1, 1, 1] float32.
        held: where a graph holds it already; None where none does.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    held: Any = None

    @property
    def numbers(self) -> NDArray[np.float32]:
        """What they stand for."""
        return self.integers.astype(np.float32) * self.scales

    def constant(self) -> Any:
        """As a graph holds it, and int8 kernels know it; not a second time where it does."""
        ops = openvino.opset13
        if self.held is not None:
            return self.held
        return ops.multiply(ops.convert(ops.constant(self.integers), "f32"), ops.constant(self.scales)).output(0)


def shape_of(value: Any) -> list[int]:
    """Lengths of a value's dimensions, -1 for those that are known only when it runs; empty where not even their number
    is.
    """
    shape = value.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [length.get_length() if length.is_static else -1 for length in shape]


def weight_of(convolution: Any) -> Weight | None:
    """A convolution's weight of integers with a scale for each output; None if it is something else."""
    product = convolution.input_value(1).get_node()
    if product.get_type_name() != "Multiply":
        return None
    widened, scales = (one.get_node() for one in product.input_values())
    if (widened.get_type_name(), scales.get_type_name()) != ("Convert", "Constant"):
        return None
    integers = widened.input_value(0).get_node()
    if integers.get_type_name() != "Constant" or integers.get_element_type() != openvino.Type.i8:
        return None
    numbers = scales.get_data()
    return Weight(integers.get_data(), numbers, convolution.input_value(1)) if numbers.shape[1:] == (1, 1, 1) else None


def only_reader(node: Any) -> Any | None:
    """The node that reads a node's output, if one alone does."""
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def factor_of_rows(product: Any, other: Any) -> Any | None:
    """What else than `other` a product multiplies, if it is one number for each row: [rows, 1, 1, 1]."""
    if product is None or product.get_type_name() != "Multiply":
        return None
    factors = [value for value in product.input_values() if value.get_node() != other]
    return factors[0] if len(factors) == 1 and shape_of(factors[0])[1:] == [1, 1, 1] else None


def number(value: Any) -> float | None:
    """A constant of one number; None for anything else."""
    node = value.get_node()
    if node.get_type_name() != "Constant" or node.get_data().size != 1:
        return None
    return float(node.get_data().item())
