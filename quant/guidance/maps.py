"""Attention maps of the conditional rows that weigh the unconditional rows' values: TR-DQ's sharing, to compare with.

TR-DQ (Shao et al., AAAI 2026; released code, spatial attention of fixed blocks at all steps): the unconditional branch
computes softmax(Q K^T) of the conditional branch times its own values; its projections are all computed. Ours: values
of both branches lie side by side along the head dimension: one attention serves both, and no map need be stored.

That saves the product of queries and keys only, less than sharing outputs does. Must not know families of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from quant.errors import BackendError


@contextmanager
def sharing_maps(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it attention modules, by name, share maps in calls whose rows lie in halves, conditional ones first.

    Self-attention only. Where image and text run through one attention as one sequence, that is not told apart.

    Raises:
        BackendError: (when a module runs) it attends to text, whose tokens differ between branches, or it computes no
            softmax attention (`scaled_dot_product_attention`).
    """
    mode = _MapSharing()
    with ExitStack() as stack, mode:
        for name, part in parts.items():
            stack.callback(part.register_forward_pre_hook(mode.before(name), with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(mode.after).remove)
        yield


class _MapSharing(TorchFunctionMode):
    """Catches the attention that a sharing module computes; only in the thread that entered it."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = ""
        self._caught = 0

    def before(self, name: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            given = inspect.signature(part.forward).bind(*args, **kwargs).arguments
            if given.get("encoder_hidden_states") is not None:
                raise BackendError(f"{name} attends to text: a map of one branch does not fit the other's tokens")
            self._inside, self._caught = name, 0

        return hook

    def after(self, *_: Any) -> None:
        name, self._inside = self._inside, ""
        if not self._caught:
            raise BackendError(f"{name} computes no softmax attention: it has no map that could be shared")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention or not self._inside:
            return func(*args, **(kwargs or {}))
        self._caught += 1
        return _side_by_side(*args, **(kwargs or {}))


def _side_by_side(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **named: Any
) -> Tensor:
    """Attention [B, heads, L, D] whose second half of rows uses the first half's map; a mask of four axes has rows."""
    half = query.shape[0] // 2
    if attn_mask is not None and attn_mask.ndim == 4 and attn_mask.shape[0] > 1:
        attn_mask = attn_mask[:half]
    both = torch.cat([value[:half], value[half:]], dim=-1)
    output = functional.scaled_dot_product_attention(query[:half], key[:half], both, attn_mask, *rest, **named)
    return torch.cat(output.chunk(2, dim=-1))
