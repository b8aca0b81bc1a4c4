"""Finds layers on concatenated inputs, as in a UNet's up-blocks, by data flow in one call. Must not know any model.

Q-Diffusion (Li et al., ICCV 2023, section 4.3): features that come up through a UNet and those of its skip connections
have ranges so different that one grid cannot hold both; each part of the concatenation gets a grid of its own. A tensor
that `torch.cat` made of modules' outputs along the channels is followed through whatever keeps channels apart (norms,
activations, resizing) to the layers that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quant.backends.call import Call, call_module
from quant.layers import FloatLayer, quantizable_layers
from quant.nesting import tensors_of

_MIXING = frozenset({
    "conv1d", "conv2d", "conv3d", "linear", "bilinear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm",
    "einsum", "scaled_dot_product_attention", "multi_head_attention_forward", "permute", "transpose", "flip",
    "roll", "cumsum",
})  # fmt: skip
"""Functions after which a channel is no longer the same channel, even where the shape stays."""


def find_splits(module: nn.Module, call: Call) -> dict[str, tuple[int, ...]]:
    """Dotted name of each layer on a concatenated input, and how many input channels each part has.

    The module runs once, on the call's first row. A layer that also reads other inputs is left out.
    """
    flow = _Flow()
    layers = quantizable_layers(module)
    found: dict[str, set[tuple[int, ...]]] = {}

    def reads(name: str, layer: FloatLayer) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            found.setdefault(name, set()).add(flow.parts((*arguments, *keywords.values())[0], layer))

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for part in module.modules():
            stack.callback(part.register_forward_hook(flow.made_by_module).remove)
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(reads(name, layer), with_kwargs=True).remove)
        with flow:
            call_module(module, call.take(torch.tensor([0])))
    return {name: next(iter(sizes)) for name, sizes in found.items() if len(sizes) == 1 and () not in sizes}


class _Flow(TorchFunctionMode):
    """Knows which tensors are concatenations of modules' outputs, and along which dimension of what sizes."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: list[Tensor] = []  # so that no other tensor gets the identity of one that is known
        self._outputs: set[int] = set()
        self._joined: dict[int, tuple[int, tuple[int, ...]]] = {}

    def parts(self, x: Tensor, layer: FloatLayer) -> tuple[int, ...]:
        """Sizes of the parts that a layer's input channels are made of; empty if they are not."""
        dim, sizes = self._joined.get(id(x), (0, ()))
        channels = x.ndim - 1 if isinstance(layer, nn.Linear) else 1
        splittable = sum(sizes) == layer.weight.shape[1] and dim == channels
        return sizes if splittable else ()

    def made_by_module(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """A forward hook: the tensors of the output were made by a module."""
        for tensor in tensors_of(output):
            self._outputs.add(id(tensor))
            self._alive.append(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if isinstance(output, Tensor):
            joined = self._follow(getattr(func, "__name__", ""), args, kwargs, output)
            if joined:
                self._joined[id(output)] = joined
                self._alive.append(output)
        return output

    def _follow(
        self, function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> tuple[int, tuple[int, ...]] | None:
        if function in ("cat", "concat", "concatenate"):
            pieces = list(args[0] if args else kwargs["tensors"])
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if len(pieces) < 2 or not all(id(piece) in self._outputs for piece in pieces):
                return None
            return int(dim) % output.ndim, tuple(piece.shape[dim] for piece in pieces)
        inputs = list(tensors_of((args, kwargs)))
        known = [tensor for tensor in inputs if id(tensor) in self._joined]
        if function in _MIXING or len(known) != 1:
            return None
        (source,) = known
        dim, sizes = self._joined[id(source)]
        mixed = any(other is not source and other.shape == source.shape for other in inputs)
        kept = output.ndim == source.ndim and output.shape[dim] == source.shape[dim]
        return (dim, sizes) if kept and not mixed else None
