"""Which layers are reconstructed together, and in which order. Knows a module's structure, no model by name.

A unit is a block or one layer. Blocks are elements of a list of modules (or siblings of one class) that hold two or
more of the layers to reconstruct and no smaller such element: a residual block, a transformer block. As in BRECQ (Li et
al., ICLR 2021), layers within a block make up for each other's rounding, and blocks are taken one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from quant.backends.call import Call, call_module

_LEAST = 2
"""Layers that make a block."""
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is reconstructed together.

    Attributes:
        name: dotted name of the block, or of the one layer.
        layers: dotted names of the layers in it.
    """

    name: str
    layers: tuple[str, ...]


def find_units(
    module: nn.Module, layers: Collection[str], call: Call, grain: Literal["layer", "block"] = "block"
) -> tuple[Unit, ...]:
    """The units of some layers of a module, in the order in which a call first runs them; layers that it does not run
    are in none.

    Args:
        module: the float model.
        layers: dotted names of the layers to reconstruct.
        call: any call; its first row is run.
        grain: "layer" makes every layer a unit of its own.
    """
    blocks = _blocks(module, layers) if grain == "block" else []
    units = [Unit(block, tuple(name for name in layers if _inside(name, block))) for block in blocks]
    covered = {name for unit in units for name in unit.layers}
    units += [Unit(name, (name,)) for name in layers if name not in covered]
    return _in_order(module, units, call)


def _blocks(module: nn.Module, layers: Collection[str]) -> list[str]:
    listed = _innermost(_listed(module), layers, ())
    return listed + _innermost(_siblings(module), layers, listed)


def _listed(module: nn.Module) -> Iterator[str]:
    """Names of all elements of lists of modules."""
    for name, part in module.named_modules():
        if isinstance(part, _LISTS):
            yield from (_joined(name, child) for child, _ in part.named_children())


def _siblings(module: nn.Module) -> Iterator[str]:
    """Names of children that share their class with another child of the same parent."""
    for name, part in module.named_modules():
        children = [(own, child) for own, child in part.named_children() if not isinstance(child, _LISTS)]
        kinds = Counter(type(child) for _, child in children)
        yield from (_joined(name, own) for own, child in children if kinds[type(child)] > 1)


def _innermost(candidates: Iterator[str], layers: Collection[str], taken: Collection[str]) -> list[str]:
    """Candidates with enough of the layers that hold no other such candidate, and no block nor lie in one."""
    large = [name for name in candidates if sum(_inside(layer, name) for layer in layers) >= _LEAST]
    return [
        name
        for name in large
        if not any(other != name and _inside(other, name) for other in large)
        and not any(_inside(block, name) or _inside(name, block) for block in taken)
    ]


def _inside(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _joined(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def _in_order(module: nn.Module, units: list[Unit], call: Call) -> tuple[Unit, ...]:
    """Units that a call runs, in the order in which it first does."""
    ran: dict[Unit, None] = {}
    with torch.no_grad(), ExitStack() as stack:
        for unit in units:
            hook = module.get_submodule(unit.name).register_forward_pre_hook(
                lambda *_, unit=unit: ran.setdefault(unit, None)
            )
            stack.callback(hook.remove)
        call_module(module, call.take(torch.tensor([0])))
    return tuple(ran)
