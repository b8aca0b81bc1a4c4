"""Denoisers without weights: every tensor has a shape and a type and no memory. Must not know families.

A module on the meta device cannot run: its own constants on the CPU do not mix with it. So its tensors are made fake
ones that say they lie on the CPU; a forward of any size then runs in a second and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def fake_module(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """A module of a diffusers class, by its config, whose parameters and buffers are fake float32 on the CPU."""
    with torch.device("meta"):
        module: nn.Module = kind.from_config(dict(config))
    return fake_weights(module.eval())


def fake_weights(module: nn.Module) -> nn.Module:
    """A module on the meta device with fake tensors on the CPU in their place, in place."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    parameters: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                own = parameters.setdefault(id(parameter), nn.Parameter(fake(parameter), requires_grad=False))
                part._parameters[name] = own
        for holder in (part._buffers, vars(part)):  # some modules keep constants as plain attributes
            for name, value in holder.items():
                if isinstance(value, Tensor) and value.is_meta:
                    holder[name] = fake(value)
    return module
