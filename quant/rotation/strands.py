"""What makes the channels of a tensor, and what functions do to that. Knows torch's functions by name, no modules.

A *strand* is a tensor whose channels can be scaled, or rotated, by changing rows of weights that made it. The rules
here look at no values, and may be wrong where a shape leaves it open which dimension the channels are: whoever changes
rows must check that the model computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Some output channels of a layer, `start` to `stop`, with a constant added: `1 + scale` has an offset of 1.

    `bare`: the owner is no layer but a parameter, laid flat, as a block's own table of scales and shifts.
    """

    owner: str
    start: int
    stop: int
    offset: float = 0.0
    bare: bool = False

    def overlaps(self, other: Rows) -> bool:
        """Whether they share a channel."""
        return self.owner == other.owner and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True, slots=True)
class Strand:
    """What makes the channels of a tensor.

    Attributes:
        rows: channels that all must be scaled for the tensor's channels to be.
        width: how many channels.
        whole: the tensor is those rows (with their offset), or the sum of several, and nothing else was done to it. Its
            channels may lie along its last two dimensions, one after the other.
        rotates: rotating those rows rotates the tensor's channels.
    """

    rows: frozenset[Rows]
    width: int
    whole: bool
    rotates: bool


_SAME = frozenset({
    "view", "reshape", "flatten", "unflatten", "contiguous", "to", "float", "type", "type_as", "clone", "detach",
    "dropout", "expand", "expand_as", "unsqueeze", "squeeze", "permute", "transpose", "movedim", "swapaxes", "repeat",
    "repeat_interleave", "interpolate",
})  # fmt: skip
"""Functions that move numbers about. Whether channels stay channels is for the check to find out."""
_PARTS = frozenset({"chunk", "split", "tensor_split", "unbind"})
_SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_PRODUCTS = frozenset({"mul", "mul_", "multiply", "__mul__", "__rmul__", "__imul__"})
_QUOTIENTS = frozenset({"div", "__truediv__", "true_divide"})


def follow(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], strand_of: Callable[[Any], Strand | None]
) -> Sequence[Strand | None]:
    """Strands of the results of a torch function, in order; nothing where they are none.

    `strand_of` tells what an argument is before the function runs, as it may change it.
    """
    if name in ("cat", "concat"):
        return [_joined([strand_of(piece) for piece in args[0]])] if args else ()
    first, second = (*args, None, None)[:2]
    one, other = strand_of(first), strand_of(second)
    if name in _SUMS:
        return [_sum(one, other, second) if one else _sum(other, one, first)]
    if name in _PRODUCTS:
        return [_product(one, other)]
    if one is None:
        return ()
    if name in _PARTS:
        return _pieces(one, name, first, args[1:], kwargs)
    if name in _SAME or (name == "__getitem__" and not _cuts_channels(first, second)):
        return [one]
    if name == "relu":
        return [replace(one, whole=False, rotates=False)]
    if name in _QUOTIENTS and isinstance(second, int | float):
        return [replace(one, whole=False)]
    return ()


def goes_on(strand: Strand, other: Strand) -> bool:
    """Whether a result is made of some of a strand's rows: those then have a reader that passes changes on."""
    return any(own.overlaps(one) for own in strand.rows for one in other.rows)


def _sum(one: Strand | None, other: Strand | None, second: Any) -> Strand | None:
    """A strand plus a number, or plus another strand."""
    if one is not None and one.whole and isinstance(second, int | float):
        # one of several takes it: a parameter where there is one, as what layers make may be part of many sums
        chosen = max(one.rows, key=lambda own: (own.bare, own))
        rows = one.rows - {chosen} | {chosen._replace(offset=chosen.offset + second)}
        return Strand(rows, one.width, whole=True, rotates=False)
    joined = _joined([one, other])
    if joined is None or one is None or other is None:
        return joined
    return replace(joined, whole=one.whole and other.whole)


def _joined(strands: Sequence[Strand | None]) -> Strand | None:
    """Strands added up, or side by side along another dimension than the channels'."""
    found = [strand for strand in strands if strand is not None]
    if not found or len(found) < len(strands) or len({strand.width for strand in found}) > 1:
        return None
    rows = frozenset[Rows]().union(*(strand.rows for strand in found))
    return Strand(rows, found[0].width, whole=False, rotates=all(strand.rotates for strand in found))


def _product(one: Strand | None, other: Strand | None) -> Strand | None:
    """A product is scaled by scaling one factor: the one with an offset, as in norm(x) * (1 + scale)."""
    found = [strand for strand in (one, other) if strand is not None]
    if not found:
        return None
    chosen = max(found, key=lambda strand: any(own.offset for own in strand.rows))
    return replace(chosen, whole=False, rotates=False)


def _pieces(
    strand: Strand, name: str, x: Tensor, given: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Strand | None]:
    """Strands of the pieces that a tensor is cut into."""
    if name == "unbind":
        given = (1, *given)
    how = given[0] if given else next((value for key, value in kwargs.items() if key != "dim"), 1)
    dim = (given[1] if len(given) > 1 else kwargs.get("dim", 0)) % x.ndim
    if name == "unbind":
        sizes = [1] * x.shape[dim]
    elif isinstance(how, int):
        size = how if name == "split" else -(-x.shape[dim] // how)
        sizes = [min(size, x.shape[dim] - start) for start in range(0, x.shape[dim], size)]
    else:
        sizes = list(how)
    stacked = dim == x.ndim - 2 and x.shape[dim] * x.shape[-1] == strand.width
    if x.shape[dim] != strand.width and not stacked:
        return [strand] * len(sizes)
    if not strand.whole or name == "tensor_split":
        return [None] * len(sizes)
    unit = x.shape[-1] if stacked else 1
    starts = [unit * sum(sizes[:index]) for index in range(len(sizes))]
    return [_piece(strand, start, unit * size) for start, size in zip(starts, sizes, strict=True)]


def _piece(strand: Strand, start: int, size: int) -> Strand:
    """Some channels of a strand that is rows, or the sum of several."""
    rows = (own._replace(start=own.start + start, stop=own.start + start + size) for own in strand.rows)
    return replace(strand, rows=frozenset(rows), width=size)


def _cuts_channels(x: Tensor, index: Any) -> bool:
    """Whether an index takes some entries of a tensor's last dimension only."""
    places = index if isinstance(index, tuple) else (index,)
    last = places[-1] if places else None
    if last is None or last is Ellipsis or (isinstance(last, slice) and last == slice(None)):
        return False
    return any(place is Ellipsis for place in places) or sum(place is not None for place in places) >= x.ndim
