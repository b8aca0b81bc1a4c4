"""OpenVINO with a float model, in bfloat16: a rival. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import quant
from bench.rivals import Runner, Work, openvino_graph
from quant.backends import convert


@dataclass(frozen=True)
class OpenVinoFloat:
    """The float graph, run in one number format."""

    name: str
    precision: str
    note: str
    builds: bool = True

    def why_not(self) -> str | None:
        """It is one of our own dependencies."""
        return None

    def build(self, work: Work) -> None:
        """Converts the module for the calls' kind."""
        call = work.calls()[0]
        path = openvino_graph.graph_path(work, call)
        if not path.is_file():
            openvino_graph.write(convert.convert(work.load(), call), path)

    def open(self, work: Work) -> Runner:
        """Graphs are read and compiled at the first call of their kind."""

        def graph(call: quant.Call) -> Path:
            return openvino_graph.graph_path(work, call)

        properties = {**openvino_graph.defaults(work), "INFERENCE_PRECISION_HINT": self.precision}
        return openvino_graph.GraphRunner(graph, work, properties)

    def files(self, work: Work) -> list[Path]:
        """The converted graphs."""
        return openvino_graph.graph_files(work)


BF16 = OpenVinoFloat("openvino-bf16", "bf16", "fixed shapes; constants in float16 on disk")
