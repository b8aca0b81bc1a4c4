"""The moment of a call as tensors beside the model's own arguments: how time gets into traced and compiled code.

Must not know how slots are found or features are stored.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quant.backends.call import Call, Executable, nested
from quant.clock import BRANCHES, Moment, MomentHolder
from quant.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear, quantized_layers
from quant.nesting import first_tensor
from quant.temporal.features import FeatureSource

PREFIX = "moment."
"""Names of a call's row tensors that belong to its moment, not to the model."""


class TimedExecutable:
    """An executable of an artifact with per-time tables: finds each call's moment, then runs it. Calls take turns."""

    def __init__(self, executable: Executable, source: FeatureSource, width: int) -> None:
        """`width`: numbers of all looked-up features for one timestep."""
        self.executable, self._source, self._width = executable, source, width
        self._turn = threading.Lock()

    @property
    def weights_bytes(self) -> int:
        """Bytes of the executable's weights, and of features and layers held for timesteps that no table knows."""
        with self._turn:
            return self.executable.weights_bytes + self._source.bytes

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table knew."""
        return self._source.fallbacks

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32.

        Raises:
            BackendError: the executable was closed, or cannot run the call.
        """
        return self.executable.run(self.at_its_moment(call))

    def at_its_moment(self, call: Call) -> Call:
        """The call with its moment, as the executable gets it."""
        with self._turn:
            moment = self._source.moment(call)
        if moment.features is None and self._width:
            # always there, so that one compiled graph serves rows that tables know and rows that they do not
            moment = replace(moment, features=torch.zeros(*moment.slot.shape, self._width))
        return timed(call, moment)

    def close(self) -> None:
        """Lets go of the executable, of features and of layers held for timesteps that no table knows."""
        self.executable.close()
        with self._turn:
            self._source.close()


def timed(call: Call, moment: Moment) -> Call:
    """The call with its moment among the row tensors."""
    parts = {
        "row": moment.row,
        "branch": moment.branch,
        "slot": moment.slot,
        "known": moment.known,
        "features": moment.features,
    }
    own = {PREFIX + name: tensor for name, tensor in parts.items() if tensor is not None}
    return replace(call, rows={**call.rows, **own})


def run_timed(module: nn.Module, tensors: Mapping[str, Tensor], constants: Mapping[str, Any]) -> Tensor:
    """What a torch module whose layers are bound to one holder answers, [B, ...]; sets the moment if there is one."""
    parts = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    holder = holder_of(module)
    if parts and holder is not None:
        holder.now = Moment(**parts)
    try:
        return first_tensor(module(**nested({**own, **constants})))
    finally:
        if holder is not None:
            holder.now = None


def forget_steps(module: nn.Module) -> None:
    """Keeps one slot's scales of layers where all slots have the same, as of inputs that are made of text alone: what
    they answer is then plainly the same at all steps.
    """
    for _, layer in quantized_layers(module):
        # temporal layers, which inherit, have tables of another shape
        if type(layer) in (QuantizedLinear, QuantizedConv2d) and layer.input_scale is not None and layer.follows_time:
            first, *others = layer.input_scale.reshape(-1, BRANCHES)
            if all(torch.equal(first, other) for other in others):
                layer.input_scale = first.clone()


def holder_of(module: nn.Module) -> MomentHolder | None:
    """The holder that a module's layers share, if any of them has one."""
    return next((layer.holder for layer in module.modules() if hasattr(layer, "holder")), None)  # type: ignore[return-value]


def needs_moment(module: nn.Module) -> bool:
    """Whether any layer's input scale depends on time, or any layer looks features up."""
    return any(
        layer.follows_time if isinstance(layer, QuantizedLayer) else hasattr(layer, "holder")
        for layer in module.modules()
    )
