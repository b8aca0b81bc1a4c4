"""What sharing attention between branches costs: the error of the guided output, module by module and step by step.

Must not know which modules are chosen, or how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.guidance.share import Patterns, run_shared
from quant.metrics import relative_errors


def sharing_errors(
    module: nn.Module,
    calls: Sequence[Call],
    names: Sequence[str],
    guidance: float,
    *,
    maps: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Relative error of the guided output when one module alone shares: [steps, modules] float64, mean over pictures.

    The guided output is u + g (c - u). Where a model puts out more channels than it takes in (a learned variance), only
    as many count, since the others are not guided. Runs the module 1 + len(names) times a step.

    Args:
        module: float or quantized; its layers are bound to one holder of the moment, if any follows time.
        calls: one for each step, with rows that go in pairs.
        names: of attention modules.
        guidance: g.
        maps: whether only attention maps are shared.
        progress: told how many runs are done, of how many.

    Raises:
        BackendError: rows of a call do not go in pairs, or a module cannot share.
    """
    patterns = Patterns(((), *((name,) for name in names)), maps)
    errors = torch.zeros(len(calls), len(names), dtype=torch.float64)
    for step, call in enumerate(calls):
        halves = call.take(call.pairs().T.flatten())
        exact = None
        for number in range(len(patterns.names)):
            now = guided(halves, _run(module, replace(halves, pattern=number), patterns), guidance)
            exact = now if exact is None else exact
            if number:
                errors[step, number - 1] = relative_errors(now, exact).double().mean()
            if progress is not None:
                progress(step * len(patterns.names) + number + 1, len(calls) * len(patterns.names))
    return errors


def guided(halves: Call, output: Tensor, guidance: float) -> Tensor:
    """u + g (c - u) of an output [2 P, ...] whose first half is conditional: [P, ...] float32, guided channels only."""
    cond, uncond = output.float().chunk(2)
    both = uncond + guidance * (cond - uncond)
    taken = next((tensor for name, tensor in halves.rows.items() if halves.role(name) == "sample"), both)
    if taken.ndim == both.ndim and both.ndim > 3 and both.shape[1] == 2 * taken.shape[1]:
        both = both[:, : taken.shape[1]]
    return both


def _run(module: nn.Module, call: Call, patterns: Patterns) -> Tensor:
    with torch.no_grad():
        return run_shared(module, call, patterns)
