"""Which layers' rounding moves the model's output most, and which of them to keep float under a budget.

Rounding errors of different layers are small and nearly independent, so their squared effects on the output add up
(checked on shapes-unet: the sum over 85 layers is within 2% of the error with all quantized). One layer's effect is
||J d||^2, with d the layer's own output error on calibrated inputs and J the Jacobian from its output to the model's.
For random normal v, (v^T J d)^2 has that mean, and one backward pass of v gives v^T J for every layer at once: all
layers cost a few forward and backward passes together, instead of one run of the model for each.

Knows modules and kept calls, not recipes' files or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.calibrate import Statistics
from quant.clock import Moment, MomentHolder
from quant.layers import bind
from quant.samples import own_copy
from quant.slots import slots_of

PROBES = 4
"""Random directions per kept call; with 16 calls, estimates scatter by about 20%."""


def output_errors(
    module: nn.Module, quantized: Mapping[str, nn.Module], statistics: Statistics, seed: int = 0
) -> dict[str, float]:
    """Mean squared relative error of the module's output that each layer alone would cause if it were quantized.

    `module` is still float; `quantized` holds what would replace its layers, by dotted name. Deterministic by seed.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = dict.fromkeys(quantized, 0.0)
    slots = {time: slot for slot, time in enumerate(statistics.schedule)}
    holder = MomentHolder()
    for layer in quantized.values():
        bind(layer, holder)
    with torch.inference_mode(False), torch.enable_grad():
        for call in map(own_copy, statistics.calls):
            slot = slots_of(call, slots)
            holder.now = Moment(slot, call.clock.branch, slot, torch.ones_like(slot, dtype=torch.bool))
            for name, effect in _one_call(module, quantized, call, generator).items():
                totals[name] += effect / len(statistics.calls)
    return totals


def _one_call(
    module: nn.Module, quantized: Mapping[str, nn.Module], call: Call, generator: torch.Generator
) -> dict[str, float]:
    leaves: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    with _disturbed(module, quantized, leaves, errors):
        output = call_module(module, call)
    ran = list(leaves)
    effects = dict.fromkeys(ran, 0.0)
    if not output.requires_grad:
        return effects
    sizes = output.detach().flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (output.ndim - 1))
    for _ in range(PROBES):
        direction = torch.randn(output.shape, generator=generator) / sizes
        slopes = torch.autograd.grad(
            output, [leaves[name] for name in ran], direction, retain_graph=True, allow_unused=True
        )
        for name, slope in zip(ran, slopes, strict=True):
            if slope is not None:
                effects[name] += float((slope.double() * errors[name].double()).sum()) ** 2
    return {name: effect / PROBES / len(output) for name, effect in effects.items()}


@contextmanager
def _disturbed(
    module: nn.Module,
    quantized: Mapping[str, nn.Module],
    leaves: dict[str, Tensor],
    errors: dict[str, Tensor],
) -> Iterator[None]:
    """Adds to each layer's output a zero that gradients are taken of, and keeps the layer's rounding error.

    A layer that runs several times in one call is judged by its last.
    """

    def hook(name: str) -> object:
        def disturb(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            with torch.no_grad():
                errors[name] = quantized[name](arguments[0].detach()) - output
            leaves[name] = torch.zeros_like(output, requires_grad=True)
            return output + leaves[name]

        return disturb

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in quantized]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def worth_keeping(
    effects: Mapping[str, float], costs: Mapping[str, tuple[float, float]], budget: tuple[float, float], least: float
) -> list[str]:
    """Layers to keep float: the most effect per cost first, as long as they fit in the budget.

    Args:
        effects: layer to its squared effect.
        costs: layer to its shares (of multiply-adds, of bytes).
        budget: how much of each share may be kept in all; nothing is kept where either is 0.
        least: a layer with less than this share of what is left of all effects is not worth an exception.
    """
    left = sum(effects.values())
    if min(budget) <= 0 or left == 0:
        return []

    def price(name: str) -> float:
        return max(max(cost / room for cost, room in zip(costs[name], budget, strict=True)), 1e-12)

    kept: list[str] = []
    spent = (0.0, 0.0)
    for name in sorted(effects, key=lambda name: (-effects[name] / price(name), name)):
        after = (spent[0] + costs[name][0], spent[1] + costs[name][1])
        if effects[name] >= least * left and after[0] <= budget[0] and after[1] <= budget[1]:
            kept.append(name)
            spent, left = after, left - effects[name]
    return kept
