"""OpenVINO with NNCF's int8 post-training quantization: the rival to beat on CPUs. Must not know what is measured.

Twice: as it comes, where OpenVINO runs what is not int8 in bfloat16 on processors that have it, and with float32 there,
as ours does. The two share one quantized graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import quant
from bench.rivals import Runner, Work, missing, openvino_graph
from quant.backends import convert, runtime

ROWS = 2
"""Rows of a call that NNCF sees: the two branches of one picture."""

MOST_CALLS = 50
"""Calls that statistics are collected on."""


@dataclass(frozen=True)
class OpenVinoNncf:
    """`nncf.quantize` with the model type for attention; statistics on the same calls that ours are calibrated on."""

    name: str
    float32: bool
    note: str
    builds: bool = True

    def why_not(self) -> str | None:
        """Whether NNCF is installed."""
        return missing("nncf", "nncf")

    def build(self, work: Work) -> None:
        """Converts and quantizes the module for the calls' kind."""
        work = _shared(work)
        calls = work.calls()
        path = openvino_graph.graph_path(work, calls[0])
        if not path.is_file():
            openvino_graph.write(_quantized(convert.convert(work.load(), calls[0]), calls), path)

    def open(self, work: Work) -> Runner:
        """Graphs are read and compiled at the first call of their kind."""
        shared = _shared(work)

        def graph(call: quant.Call) -> Path:
            return openvino_graph.graph_path(shared, call)

        precision = {"INFERENCE_PRECISION_HINT": "f32"} if self.float32 else {}
        return openvino_graph.GraphRunner(graph, work, {**openvino_graph.defaults(work), **precision})

    def files(self, work: Work) -> list[Path]:
        """The quantized graphs."""
        return openvino_graph.graph_files(_shared(work))


def _shared(work: Work) -> Work:
    """The same with the folder in which both variants' graphs lie."""
    return replace(work, folder=work.folder.parent / "openvino-nncf")


def _quantized(model: Any, calls: Sequence[quant.Call]) -> Any:
    runtime.version()  # telemetry is off from here on, before nncf is imported
    import nncf

    items = list(_items(calls))[:: max(1, len(calls) // MOST_CALLS)][:MOST_CALLS]
    names = convert.input_names(model, calls[0])

    def arrays(call: quant.Call) -> dict[str, Any]:
        tensors = call.tensors()
        return {name: tensors[name].contiguous().numpy() for name in names}

    return nncf.quantize(
        model, nncf.Dataset(items, arrays), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(items)
    )


def _items(calls: Sequence[quant.Call]) -> Iterator[quant.Call]:
    """The rows of one picture at a time: both branches where both are there."""
    for call in calls:
        both = bool((call.clock.branch == quant.COND).any() and (call.clock.branch == quant.UNCOND).any())
        for rows in call.pairs() if both else torch.split(torch.arange(call.count), ROWS):
            yield call.take(rows)


INT8 = OpenVinoNncf("openvino-nncf-int8", False, "full PTQ (ModelType.TRANSFORMER); the rest as OpenVINO chooses")
INT8_F32 = OpenVinoNncf("openvino-nncf-int8-f32", True, "the same graph; the rest in float32")
