"""What a graph makes of a request's text alone: computed when a text comes, not at every step. Must not know models.

Projections of text, and keys and values of cross-attention, are the same at all steps of a picture. They are cut out of
a graph into one of their own, whose answers the rest takes in: exactly the same numbers for fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from quant.backends import convert, kernels
from quant.backends.call import Call
from quant.backends.moment import PREFIX as MOMENT
from quant.backends.runtime import openvino

WORTH: Final = 0.01
"""Share of a graph's multiply-adds from which on they are cut out."""

LEAST, MOST, MOST_BYTES = 2, 4, 256 << 20
"""Texts whose answers are kept: at least, as branches of a request may come in calls of their own; at most; bytes."""

_STILL: Final = ("text", "pooled", "constant")
"""Roles of arguments that a request has one value of."""


def cut(model: Any, call: Call, *, halves: bool) -> tuple[Any, Any | None]:
    """A graph of fixed shapes (`fix_shapes`) in two: what follows the steps, and what does not, which is None where it
    is not worth a graph. The given graph is used up.

    Args:
        model: an `openvino.Model` for calls of that signature.
        call: tells what its arguments are.
        halves: whether the parts exchange bfloat16, as where both compute in it.
    """
    still = _still_nodes(model, call)
    spent = sum(kernels.of_operation(node) for node in model.get_ops() if node.get_name() in still)
    if spent < WORTH * kernels.multiply_adds(model) or any(one.get_name() in still for one in model.get_results()):
        return model, None
    kept = [one for one in model.get_parameters() if not _is_still(one, call) or _readers(one.output(0), still)]
    answers: list[Any] = []
    entries: list[Any] = []
    for node in model.get_ordered_ops():
        for output in node.outputs() if node.get_name() in still else ():
            if readers := _readers(output, still):
                result, entry = _part(output, readers, f"{convert.CONTEXT}{len(answers)}", halves=halves)
                answers.append(result)
                entries.append(entry)
    asked = [one for one in model.get_parameters() if _is_still(one, call)]
    rest = openvino.Model(model.get_results(), [*kept, *entries], model.get_friendly_name())
    return rest, openvino.Model(answers, asked, f"{model.get_friendly_name()} of text")


def fix_shapes(model: Any) -> None:
    """Puts numbers in place of shapes, where they are known: what is made of shapes alone (PixArt's places of tokens,
    how it lays out its text) would else follow the values too.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ShapeOf" and node.input(0).get_partial_shape().is_static:
            shape = np.array(list(node.input(0).get_shape()), node.output(0).get_element_type().to_dtype())
            node.output(0).replace(openvino.opset13.constant(shape).output(0))
    model.validate_nodes_and_infer_types()


def _moving(model: Any, call: Call) -> set[str]:
    """Names of nodes that depend on arguments that change from step to step."""
    moves: set[str] = set()
    for node in model.get_ordered_ops():
        entry = node.get_type_name() == "Parameter" and not _is_still(node, call)
        if entry or any(value.get_node().get_name() in moves for value in node.input_values()):
            moves.add(node.get_name())
    return moves


def _still_nodes(model: Any, call: Call) -> set[str]:
    """Names of nodes that depend on still arguments alone and on products of these: the rest costs too little to be
    handed over.
    """
    moves, still = _moving(model, call), set[str]()
    told: set[str] = {one.get_name() for one in model.get_parameters()} - moves
    for node in model.get_ordered_ops():
        name, sources = node.get_name(), {value.get_node().get_name() for value in node.input_values()}
        if name not in moves and sources & told:
            told.add(name)
            if sources & still or kernels.of_operation(node):
                still.add(name)
    return still


def _is_still(parameter: Any, call: Call) -> bool:
    """Whether a request has one value of an argument. A row's branch of guidance is such, its step is not."""
    names = parameter.output(0).get_names()
    return f"{MOMENT}branch" in names or any(call.role(name) in _STILL for name in names & call.tensors().keys())


def _readers(output: Any, still: set[str]) -> list[Any]:
    """The inputs outside of the still part that take a value in."""
    return [one for one in output.get_target_inputs() if one.get_node().get_name() not in still]


def _part(output: Any, readers: list[Any], name: str, *, halves: bool) -> tuple[Any, Any]:
    """A value handed over from one graph to the other: where it leaves, and where it comes in."""
    ops, kind = openvino.opset13, output.get_element_type()
    small = halves and kind == openvino.Type.f32
    entry = ops.parameter(list(output.get_shape()), openvino.Type.bf16 if small else kind, name)
    entry.output(0).get_tensor().set_names({name})
    inside = ops.convert(entry, kind) if small else entry
    leaving = ops.convert(output, openvino.Type.bf16) if small else output
    for reader in readers:
        reader.replace_source_output(inside.output(0))
    result = ops.result(leaving)
    result.output(0).get_tensor().set_names({name})
    return result, entry


class Context:
    """The compiled graph of still parts, with its answers to the texts that it saw last. One call at a time."""

    def __init__(self, model: Any, call: Call) -> None:
        self.model = model
        self._names = convert.input_names(model, call)
        self._answers = [
            next(name for name in port.get_names() if name.startswith(convert.CONTEXT)) for port in model.outputs
        ]
        self._request = model.create_infer_request()
        self._kept: list[tuple[list[Tensor], dict[str, Any]]] = []

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the other graph takes in, by name, for a call's tensors; computed unless they were seen lately."""
        asked = [tensors[name].detach().contiguous() for name in self._names]
        for place, (known, answers) in enumerate(self._kept):
            if all(map(torch.equal, known, asked)):
                self._kept.append(self._kept.pop(place))
                return answers
        answers = self._computed(asked)
        self._kept.append(([one.clone() for one in asked], answers))
        while len(self._kept) > MOST or (len(self._kept) > LEAST and self.kept_bytes > MOST_BYTES):
            self._kept.pop(0)
        return answers

    @property
    def kept_bytes(self) -> int:
        """Bytes of texts and answers."""
        return sum(
            sum(one.nbytes for one in known) + sum(one.byte_size for one in answers.values())
            for known, answers in self._kept
        )

    def _computed(self, asked: list[Tensor]) -> dict[str, Any]:
        self._request.infer([one.numpy() for one in asked], share_inputs=True, share_outputs=True)
        told = {}
        for place, name in enumerate(self._answers):
            answer = self._request.get_output_tensor(place)
            own = openvino.Tensor(answer.get_element_type(), answer.get_shape())
            answer.copy_to(own)
            told[name] = own
        return told
