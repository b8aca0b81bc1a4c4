"""From a torch module of quantized layers to OpenVINO's graph on disk. Knows tracing; must not know how graphs are run.

The graph keeps integers as int8 constants (converted and scaled to float in the graph) and input roundings as
FakeQuantize: the shape in which OpenVINO recognizes a layer that its int8 kernels can run.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quant.backends.call import Call
from quant.backends.moment import run_timed
from quant.backends.runtime import TorchScriptPythonDecoder, openvino
from quant.errors import BackendError
from quant.report import LayerForm, counted

CONTEXT = "context."
"""Names of inputs that are no tensors of a call begin so (`context.py`)."""

_TRACING = threading.Lock()
"""Tracing patches torch globally: one thread at a time."""


class _Traceable(TorchFunctionMode):
    """Within it masks are filled with truth values in a way that torch can trace: it has no operator to note down for
    the usual one, which HunyuanVideo uses.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.masked_fill and args[0].dtype is torch.bool and isinstance(args[-1], bool):
            x, mask, value = args
            return (x | mask) if value else (x & ~mask)
        return func(*args, **(kwargs or {}))


class _Flat(nn.Module):
    """The module as a function of tensors in a fixed order, everything else held constant."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self._names = tuple(call.tensors())
        self._constants = dict(call.constants)

    def forward(self, *tensors: Tensor) -> Tensor:
        return run_timed(self.module, dict(zip(self._names, tensors, strict=True)), self._constants)


def refuse(forms: Mapping[str, LayerForm]) -> None:
    """Refuses layers that no integer kernel runs.

    Raises:
        BackendError: there are such layers; the reference backend runs them.
    """
    published = [name for name, form in forms.items() if form.kind == "published"]
    by_token = [name for name, form in forms.items() if form.zero_point == "token"]
    reasons = {
        "have weights of their own for each range of time": published,
        "give each token a zero point of its own": by_token,
    }
    for reason, names in reasons.items():
        if names:
            raise BackendError(f"layers {reason}: {counted(names)}; only the reference backend runs those")


def convert(module: nn.Module, call: Call) -> Any:
    """The module's graph for calls of this signature: an `openvino.Model` with a free number of rows.

    Its inputs bear the names of the call's tensors, those too that cannot matter, such as a timestep of which only the
    moment's slot is read.

    Raises:
        BackendError: the module cannot be traced or uses what OpenVINO lacks.
    """
    example = call if call.count > 1 else call.padded(2)  # a traced batch of 1 may be taken for a constant
    with _TRACING, warnings.catch_warnings(), torch.no_grad(), _Traceable():
        # tracing is deprecated in torch, and warns of every shape check that it takes for constant
        warnings.simplefilter("ignore")
        try:
            # not traced again for a check, which takes a multiple of time and memory
            flat, tensors = _Flat(module, example), tuple(example.tensors().values())
            decoder = TorchScriptPythonDecoder(flat, example_input=tensors, trace_kwargs={"check_trace": False})
            model = openvino.convert_model(decoder)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot take over {type(module).__name__}: {error}") from error
    names = list(example.tensors())
    if len(model.inputs) != len(names):
        raise BackendError(f"{type(module).__name__}: OpenVINO kept {len(model.inputs)} inputs of {', '.join(names)}")
    for name, port in zip(names, model.inputs, strict=True):
        port.get_tensor().set_names({name})
    model.reshape(shapes(model, example, -1))
    return model


def input_names(model: Any, call: Call) -> list[str]:
    """Which of a call's tensors a converted or compiled graph takes, in its order; compiling may add other names."""
    known = call.tensors().keys()
    return [
        next(name for name in port.get_names() if name in known or name.startswith(CONTEXT)) for port in model.inputs
    ]


def is_context(port: Any) -> bool:
    """Whether an input is no tensor of a call, but what another graph makes of some."""
    return any(name.startswith(CONTEXT) for name in port.get_names())


def shapes(model: Any, call: Call, rows: int) -> dict[Any, list[int]]:
    """Input to shape for calls of this signature with that many rows; -1 rows leaves their number free."""
    told = {one.name: one for one in call.inputs()}
    return {
        port: [*([rows] if told[name].per_row else []), *told[name].shape]
        for port, name in zip(model.inputs, input_names(model, call), strict=True)
    }


def write(model: Any, path: Path) -> None:
    """Writes a graph as `path` (.xml) with its constants beside it (.bin); both appear whole, the .xml last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=path.parent) as partial:
        fresh = Path(partial) / "model.xml"
        openvino.save_model(model, fresh, compress_to_fp16=False)
        fresh.with_suffix(".bin").replace(path.with_suffix(".bin"))
        fresh.replace(path)


def computes_angles(model: Any) -> bool:
    """Whether a graph takes sines or cosines of what it is given, as embeddings of timesteps do; where tables hold
    them, none is computed. Those of constants are taken once, in full, when a graph is compiled.

    In bfloat16 a timestep of 999 is 1000, and its sine another one.
    """
    given: set[str] = set()
    for node in model.get_ordered_ops():
        sources = {value.get_node().get_name() for value in node.input_values()}
        if node.get_type_name() == "Parameter" or sources & given:
            given.add(node.get_name())
            if node.get_type_name() in ("Sin", "Cos"):
                return True
    return False
