"""Finds where a change of layers' inputs can go into the weights that make these inputs. Knows no model by name.

Two kinds of places. Data flow (readings.py): norms with weights, per-block linears of scale and shift, the linear half
of a gated unit, linears that only linears read; tables of scale and shift of many blocks that are added to what one
linear makes for all (PixArt, Wan, LTX), which then take up the same factors. Structure: attention, whose output is a
mean of values, so that what is done to each head's values at `to_v` can be taken back in `to_out`.

None is believed. Each is tried with a random change on real calls, and is taken only if the model computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.layers import FloatLayer, as_float_layer
from quant.metrics import relative_error
from quant.rotation.attach import absorb_
from quant.rotation.greedy import Blocks
from quant.rotation.hadamard import block_of, hadamard
from quant.rotation.readings import Readings
from quant.rotation.strands import Rows
from quant.rotation.transform import InputTransform, axis_of

TOLERANCE = 1e-5
"""Relative difference of the model's float32 output that folding may cause: rounding, and nothing else."""

_TRIED_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Fold:
    """Layers whose inputs come from certain rows of weights alone.

    Attributes:
        kind: which change can be folded: factors, or a rotation.
        rows: weights that take it up.
        layers: all linears and convolutions that read what these make, and take it back.
        width: channels of their inputs.
        within: blocks of a rotation must divide it. Equal to the width: channels may also be permuted.
    """

    kind: Literal["scale", "rotate"]
    rows: tuple[Rows, ...]
    layers: tuple[str, ...]
    width: int
    within: int

    @property
    def owners(self) -> tuple[str, ...]:
        """Names of the layers whose weights take the change up."""
        return tuple(dict.fromkeys(own.owner for own in self.rows))


class Folds(NamedTuple):
    """What can be folded; and why each other candidate cannot, by the layers that would take it back."""

    found: tuple[Fold, ...]
    refused: Mapping[str, str]


def find_folds(module: nn.Module, readings: Readings, calls: Sequence[Call], seed: int = 0) -> Folds:
    """All folds of a float module that hold on calls of it. The module is as before afterwards."""
    refused: dict[str, str] = {}
    candidates = [*_by_flow(readings), *_by_structure(module, readings)]
    usable = [fold for fold in candidates if not _note(refused, fold, _fault(module, readings, fold, candidates))]
    expected = [_run(module, call) for call in calls]

    def holds(folds: Sequence[Fold]) -> bool:
        with restored(module, folds):
            for index, fold in enumerate(folds):
                fold_(module, fold, _random_change(module, fold, seed + index))
            return all(
                relative_error(_run(module, call), truth) <= TOLERANCE
                for call, truth in zip(calls, expected, strict=True)
            )

    found = list(_those_that_hold(usable, holds))
    for fold in usable:
        if fold not in found:
            _note(refused, fold, f"changing {_named(fold.owners)} for it changed what the model computes")
    return Folds(tuple(found), refused)


def fold_(module: nn.Module, fold: Fold, transform: InputTransform) -> None:
    """Puts a change into the weights that make inputs, and takes it back in the layers that read them, in place.

    Parameters are replaced, never written into.
    """
    for own in fold.rows:
        change = transform if own.stop - own.start == transform.width else transform.resized(own.stop - own.start)
        for part, name in _takers(module, own):
            values = getattr(part, name)
            offset = 0.0 if name == "weight" and not own.bare else own.offset
            fresh = values.detach().clone()
            flat = fresh.view(-1) if own.bare else fresh
            rows = flat[own.start : own.stop].double() + offset
            flat[own.start : own.stop] = (change.on_output(rows) - offset).to(values.dtype)
            setattr(part, name, nn.Parameter(fresh, requires_grad=False))
    for name in fold.layers:
        absorb_(_layer(module, name), transform)


def _takers(module: nn.Module, own: Rows) -> list[tuple[nn.Module, str]]:
    """(part, name of a parameter of it) of all that makes some rows: a weight and a bias, or a parameter alone."""
    if own.bare:
        parent, _, name = own.owner.rpartition(".")
        return [(module.get_submodule(parent), name)]
    part = module.get_submodule(own.owner)
    return [(part, name) for name in ("weight", "bias") if getattr(part, name, None) is not None]


@contextmanager
def restored(module: nn.Module, folds: Iterable[Fold]) -> Iterator[None]:
    """After it the weights that some folds change are what they were."""
    changed = list(folds)
    takers = {taker for fold in changed for own in fold.rows for taker in _takers(module, own)}
    takers |= {(module.get_submodule(name), "weight") for fold in changed for name in fold.layers}
    before = [(part, name, getattr(part, name)) for part, name in takers]
    try:
        yield
    finally:
        for part, name, values in before:
            setattr(part, name, values)


def _by_flow(readings: Readings) -> Iterator[Fold]:
    """Candidates that data flow shows."""
    readers: dict[frozenset[Rows], list[str]] = {}
    for name, reading in readings.layers.items():
        if reading.strand is not None:
            readers.setdefault(reading.strand.rows, []).append(name)
    for rows, names in _linked(readers).items():
        if not readings.clear(rows):
            continue
        strands = [strand for name in names if (strand := readings.layers[name].strand) is not None]
        width, ordered = strands[0].width, tuple(sorted(rows))
        yield Fold("scale", ordered, tuple(names), width, width)
        if all(strand.rotates for strand in strands):
            yield Fold("rotate", ordered, tuple(names), width, width)


def _linked(readers: Mapping[frozenset[Rows], list[str]]) -> dict[frozenset[Rows], list[str]]:
    """Layers by what makes their inputs; where parameters of several blocks are added to the same rows, these blocks
    together.
    """
    linked: dict[frozenset[Rows], list[str]] = {}
    for rows, names in readers.items():
        if any(own.bare for own in rows):
            for other in [one for one in linked if one & rows]:
                rows, names = rows | other, [*linked.pop(other), *names]
        linked[rows] = names
    return linked


def _by_structure(module: nn.Module, readings: Readings) -> Iterator[Fold]:
    """Candidates of attention: values, and the projections of its output."""
    for name, part in module.named_modules():
        outputs = [out for out in ("to_out", "to_out.0", "to_add_out") if _is_linear(part, out)]
        values = [value for value in ("to_v", "add_v_proj") if _is_linear(part, value)]
        heads = getattr(part, "heads", None)
        layers = tuple(f"{name}.{out}" for out in outputs if f"{name}.{out}" in readings.layers)
        if not layers or not values or not isinstance(heads, int):
            continue
        width = _layer(module, layers[0]).weight.shape[1]
        if width % heads or any(len(_layer(part, value).weight) % (width // heads) for value in values):
            continue
        rows = tuple(Rows(f"{name}.{value}", 0, len(_layer(part, value).weight)) for value in values)
        yield Fold("rotate", rows, layers, width, width // heads)
        if all(own.stop == width for own in rows):  # values that several heads share cannot be scaled for each
            yield Fold("scale", rows, layers, width, width)


def _fault(module: nn.Module, readings: Readings, fold: Fold, candidates: Sequence[Fold]) -> str:
    """Why a candidate need not be tried; empty where it must."""
    rivals = [other for other in candidates if other is not fold and other.kind == fold.kind]
    if any(own.overlaps(one) for other in rivals for own in fold.rows for one in other.rows):
        return f"its channels of {_named(fold.owners)} are read in different ways"
    if fold.kind == "rotate" and block_of(fold.within, _TRIED_BLOCK) < 2:
        return f"no power of two divides the {fold.within} channels that may be mixed"
    for own in fold.rows:
        if own.offset and not own.bare and getattr(module.get_submodule(own.owner), "bias", None) is None:
            return f"{own.owner} has no bias to take up what it is added to"
    return ""


def _note(refused: dict[str, str], fold: Fold, why: str) -> bool:
    if why:
        refused.update(dict.fromkeys(fold.layers, why))
    return bool(why)


def _those_that_hold(folds: Sequence[Fold], holds: Callable[[Sequence[Fold]], bool]) -> Iterator[Fold]:
    """Those of some folds that hold, by halves: one run where all do."""
    if not folds:
        return
    if holds(folds):
        yield from folds
    elif len(folds) > 1:
        half = len(folds) // 2
        yield from _those_that_hold(folds[:half], holds)
        yield from _those_that_hold(folds[half:], holds)


def _random_change(module: nn.Module, fold: Fold, seed: int) -> InputTransform:
    """Any change of that kind, to try."""
    generator, axis = torch.Generator().manual_seed(seed), axis_of(_layer(module, fold.layers[0]))
    if fold.kind == "scale":
        return InputTransform(fold.width, torch.exp(2 * torch.rand(fold.width, generator=generator) - 1), axis=axis)
    block = hadamard(block_of(fold.within, _TRIED_BLOCK), seed)
    if fold.within < fold.width:
        return InputTransform(fold.width, blocks=Blocks(block), axis=axis)
    permutation = torch.randperm(fold.width, generator=generator)
    return InputTransform(fold.width, blocks=Blocks(block, permutation, block), axis=axis)


def _run(module: nn.Module, call: Call) -> Tensor:
    with torch.no_grad():
        return call_module(module, call)


def _is_linear(part: nn.Module, name: str) -> bool:
    try:
        return type(part.get_submodule(name)) is nn.Linear
    except AttributeError:
        return False


def _layer(module: nn.Module, name: str) -> FloatLayer:
    layer = as_float_layer(module.get_submodule(name))
    if layer is None:
        raise TypeError(f"{name} is no linear or convolution")
    return layer


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
