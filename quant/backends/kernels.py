"""Reads a compiled OpenVINO graph: which multiply-adds run in int8 kernels. Knows graphs, not models."""

from __future__ import annotations

import math
from typing import Any

_PRODUCTS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")


def multiply_adds(model: Any) -> int:
    """Multiply-adds of all convolutions, matrix products and attentions of an `openvino.Model` of static shapes."""
    return sum(of_operation(operation) for operation in model.get_ops())


def int8_multiply_adds(compiled: Any) -> int:
    """Multiply-adds that a compiled model runs in int8 kernels, by its runtime graph."""
    total = 0
    for node in compiled.get_runtime_model().get_ops():
        told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in _ASKED}
        kernel = told.get("primitiveType", "")
        if told.get("layerType") in _PRODUCTS and "_i8" in kernel.lower() and not kernel.startswith("ref"):
            total += math.prod(_shape(node.output(0))) * _fan_in(_shape(node.input(1)))
    return total


_ASKED = ("layerType", "primitiveType")
_COUNTED = ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention")


def of_operation(operation: Any) -> int:
    """Multiply-adds of one operation of static shapes; 0 of any that is none of these."""
    kind = operation.get_type_name()
    if kind not in _COUNTED:
        return 0
    output = math.prod(_shape(operation.output(0)))
    if kind in ("Convolution", "GroupConvolution"):
        weight = _shape(operation.input(1))
        return output * math.prod(weight[2 if kind == "GroupConvolution" else 1 :])
    if kind == "MatMul":
        return output * _shape(operation.input(0))[-2 if operation.get_attributes()["transpose_a"] else -1]
    query, key, value = (_shape(operation.input(port)) for port in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _fan_in(weight: list[int]) -> int:
    """Inputs that each output of a product sums over; weights are [out, ...] or [groups, out, ...]."""
    return math.prod(weight) // (weight[0] if len(weight) != 5 else weight[0] * weight[1])


def _shape(port: Any) -> list[int]:
    return [int(length) for length in port.get_shape()]
