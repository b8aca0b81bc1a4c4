"""OpenVINO as a rival uses it: a graph per kind of call, fixed shapes, its own defaults. Knows no rival.

Conversion is that of our backend, which is OpenVINO's own; files are saved as OpenVINO does by default, float constants
in float16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import quant
from bench.rivals import Work
from quant.backends import convert, runtime

GRAPHS = "graphs"


class GraphRunner:
    """Compiles the graph of a call's kind for its number of rows when first asked, and keeps it."""

    def __init__(self, graph: Callable[[quant.Call], Path], work: Work, properties: dict[str, Any]) -> None:
        self._graph = graph
        self._properties = {"CACHE_DIR": str(work.folder / "compiled"), **properties}
        self._requests: dict[tuple[str, int], tuple[Any, list[str]]] = {}

    def run(self, call: quant.Call) -> Tensor:
        """The graph's output [B, ...] float32, in memory of its own."""
        key = (call.signature(), call.count)
        if key not in self._requests:
            self._requests[key] = self._compiled(call)
        request, names = self._requests[key]
        tensors = call.tensors()
        arrays = [tensors[name].detach().contiguous().numpy() for name in names]
        result = request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0]).clone()

    def close(self) -> None:
        """Lets go of all compiled graphs."""
        self._requests.clear()

    def _compiled(self, call: quant.Call) -> tuple[Any, list[str]]:
        model = runtime.core().read_model(self._graph(call))
        model.reshape(convert.shapes(model, call, call.count))
        compiled = runtime.core().compile_model(model, "CPU", self._properties)
        return compiled.create_infer_request(), convert.input_names(compiled, call)


def defaults(work: Work) -> dict[str, Any]:
    """One call at a time as fast as it goes; all else as OpenVINO chooses, bfloat16 too where the processor has it."""
    return {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": work.threads}


def graph_path(work: Work, call: quant.Call) -> Path:
    """Where the graph for calls of this kind lies."""
    return work.folder / GRAPHS / f"{call.signature()}.xml"


def write(model: Any, path: Path) -> Path:
    """Writes a graph with its constants beside it; both appear whole, the .xml last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
        fresh = Path(partial) / "model.xml"
        runtime.openvino.save_model(model, fresh)
        fresh.with_suffix(".bin").replace(path.with_suffix(".bin"))
        fresh.replace(path)
    return path


def graph_files(work: Work) -> list[Path]:
    """All graphs of a rival with their constants."""
    folder = work.folder / GRAPHS
    return sorted(path for suffix in ("*.xml", "*.bin") for path in folder.glob(suffix))
