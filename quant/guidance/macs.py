"""Multiply-adds of denoiser calls, counted as they run, and the share of them that a guidance plan leaves out.

Counted are matrix products, convolutions and attention, by PyTorch's own counter (two operations are one multiply-add).
Sums, norms and activations are not. Only the denoiser: neither text encoder nor autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from quant.backends.call import Call
from quant.backends.moment import run_timed
from quant.guidance.plan import GuidanceStep
from quant.guidance.share import NO_SHARING, Patterns, sharing


class MultiplyAdds(NamedTuple):
    """Of one call: in all, and of each module with all that runs inside it, by name; modules without any are not in."""

    total: int
    modules: dict[str, int]


class Costs(NamedTuple):
    """Multiply-adds of one picture at one step.

    Attributes:
        both: of the pair of its rows, at each sharing pattern; the first shares nothing.
        conditional: of its conditional row alone.
    """

    both: tuple[int, ...]
    conditional: int

    def of(self, step: GuidanceStep) -> int:
        """What a step of a plan computes."""
        return self.both[step.pattern] if step.runs else self.conditional


def multiply_adds(module: nn.Module, call: Call, patterns: Patterns = NO_SHARING) -> MultiplyAdds:
    """Runs a call, whose rows lie in halves if it has a pattern, and counts.

    Raises:
        BackendError: rows cannot share attention as the call's pattern says.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    with sharing(module, call, patterns), torch.no_grad(), counter:
        run_timed(module, call.tensors(), call.constants)
    counts = {name: sum(parts.values()) // 2 for name, parts in counter.get_flop_counts().items()}
    prefix = f"{type(module).__name__}."
    inside = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    return MultiplyAdds(counts.get("Global", 0), inside)


def costs(module: nn.Module, call: Call, patterns: Patterns = NO_SHARING) -> Costs:
    """Counts what one picture takes at one step, by the first pair of a call's rows.

    Raises:
        BackendError: the call's rows do not go in pairs, or a module cannot share.
    """
    pair = call.take(call.pairs()[0])
    both = (replace(pair, pattern=pattern) for pattern in range(len(patterns.names)))
    alone = multiply_adds(module, replace(pair, pattern=0).take(torch.tensor([0])))
    return Costs(tuple(multiply_adds(module, one, patterns).total for one in both), alone.total)


def saving(steps: Sequence[GuidanceStep], taken: Costs) -> float:
    """Share of the multiply-adds of all denoiser calls of a picture, guided at every step, that a plan leaves out."""
    return 1 - sum(taken.of(step) for step in steps) / (len(steps) * taken.both[0])


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""Operations that the counter does not know, by shapes of their arguments."""
