"""Finds the moment of each call: the slot that each row is at, and features that no table has. Must not know models.

Rows at unknown times or constants are computed by the temporal layers that an artifact stores apart, opened when first
needed. Layers of class E2 have no table: when a request's pooled text is first seen, the features of all steps of the
schedule are computed together, as one matrix product for each layer (hoisting). Both are kept up to a bound of bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quant.backends.call import Call
from quant.clock import Moment
from quant.errors import BackendError, QuantError
from quant.temporal.plan import Errors, KeptLeaf, Lookup, Strategy, Stub, TemporalPlan, make_plan
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import Exactly, features_at

CAPACITY = 1 << 30
"""Bytes of computed features that are kept; what one call needs is kept in any case."""


_Hash = bytes


class _Wanted(NamedTuple):
    """One feature vector: a request (hash of constants and pooled text) at a time (value of each argument of time).

    `place`: in the batch that it must be computed in; 0 where that does not matter.
    """

    request: _Hash
    times: tuple[float, ...]
    place: int = 0


class FeatureSource:
    """Knows the moment of calls of one artifact. One thread at a time.

    Attributes:
        fallbacks: rows so far that have tables and that no table could answer.
        hoists: requests so far whose features were computed for all steps at once.
    """

    def __init__(
        self,
        plan: TemporalPlan,
        open_program: Callable[[], TemporalProgram] | None,
        *,
        exact: bool = False,
        capacity: int = CAPACITY,
    ) -> None:
        """Takes a plan and what opens the layers stored apart; None if there are none.

        `exact`: computed features have every bit as the whole model has them in calls of this number of rows (times
        tokens). Each is then computed in a batch of copies, which takes far longer: for proofs, not for serving.
        """
        self.fallbacks = self.hoists = 0
        self._plan, self._open = plan, open_program
        self._program: TemporalProgram | None = None
        self._exact, self._capacity, self._closed = exact, capacity, False
        self._kept: OrderedDict[_Wanted, Tensor] = OrderedDict()
        self._slots = _Slots(plan)
        self._tabled = any(one.storage is not None for one in plan.lookups)
        self._hoists = any(one.storage is None for one in plan.lookups)

    @property
    def bytes(self) -> int:
        """Bytes of features kept and of the layers opened."""
        opened = (
            0
            if self._program is None
            else sum(
                tensor.nbytes
                for layer in self._program.layers().values()
                for tensor in (*layer.parameters(), *layer.buffers())
            )
        )
        return opened + sum(features.nbytes for features in self._kept.values())

    def moment(self, call: Call) -> Moment:
        """The moment of a call.

        Raises:
            BackendError: the source was closed.
            QuantError: the call lacks the timestep; or features must be computed, and no layers are there to do it.
        """
        if self._closed:
            raise BackendError("the feature source was closed")
        times = self._times(call)
        slot, known = self._slots.find(times)
        if self._tabled:
            known = known & _along(self._constants_match(call), known)
            self.fallbacks += int((~known.flatten(1).all(1) if known.ndim > 1 else ~known).sum())
        features = None
        if self._plan.lookups and (self._hoists or not bool(known.all())):
            features = self._features(call, times, known)
        row = self._slots.find_rows(times)[0] if slot.ndim > 1 else slot
        return _on(call, Moment(row, call.clock.branch.cpu(), slot, known, features))

    def close(self) -> None:
        """Lets go of features kept and of the layers opened; the source cannot answer again."""
        self._closed = True
        self._program = None
        self._kept.clear()

    def _times(self, call: Call) -> Tensor:
        """Values of all arguments of time, float64 [*slot, arguments]."""
        names = (self._plan.time, *self._plan.times)
        missing = [name for name in names if name not in call.rows]
        if missing:
            raise QuantError(f"the call has no {', '.join(missing)}, which the artifact's schedule is about")
        values = [call.rows[name].detach().double().cpu() for name in names]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) != 1 or values[0].ndim not in (1, 2):
            raise QuantError(f"timesteps are all [rows], or all [rows, tokens], not {sorted(shapes)}")
        return torch.stack(values, dim=-1)

    def _constants_match(self, call: Call) -> Tensor:
        """[B] bool: whether each row's constants are those that the tables hold for."""
        same = torch.ones(call.count, dtype=torch.bool)
        for name, values in self._plan.constants.items():
            tensor = call.tensors().get(name)
            rows = call.count if name in call.rows else 1
            if tensor is None or tensor.numel() != rows * len(values):
                return torch.zeros_like(same)
            own = tensor.detach().double().cpu().reshape(rows, -1)
            same &= (own == torch.tensor(values, dtype=torch.float64)).all(1)
        return same

    def _features(self, call: Call, times: Tensor, known: Tensor) -> Tensor:
        """[*slot, F] float32; zeros where tables answer and nothing is hoisted."""
        requests = _requests(call)
        flat = times.flatten(0, -2)
        per_row = flat.shape[0] // call.count
        wanted, place = _each(requests, flat, per_row) if self._exact else _distinct(requests, flat, per_row)
        needed = set(place.tolist()) if self._hoists else set(place[~known.flatten()].tolist())
        keys = [key for index, key in enumerate(wanted) if index in needed]
        self._compute(call, requests, keys, flat.shape[0])
        zero = torch.zeros(self._plan.width)
        table = torch.stack([self._kept[key] if index in needed else zero for index, key in enumerate(wanted)])
        return table[place].reshape(*known.shape, -1)

    def _compute(self, call: Call, requests: Sequence[_Hash], keys: Sequence[_Wanted], rows: int) -> None:
        """Sees to it that the features of all keys are kept."""
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        missing = [key for key in keys if key not in self._kept]
        if not missing:
            return
        fresh = list(dict.fromkeys((*missing, *self._whole_schedules(missing))))
        source = torch.tensor([requests.index(key.request) for key in fresh])
        values = torch.tensor([key.times for key in fresh], dtype=torch.float64)
        names = (self._plan.time, *self._plan.times)
        found = features_at(
            self._opened(),
            call,
            source,
            {name: values[:, column] for column, name in enumerate(names)},
            {one.name: one.width for one in self._plan.lookups},
            exactly=Exactly(rows, torch.tensor([key.place for key in fresh])) if self._exact else None,
            moments=self._moments,
        )
        side_by_side = torch.cat([found[one.name].cpu() for one in self._plan.lookups], dim=1)
        self._make_room(side_by_side.nbytes, keys)
        self._kept.update((key, row.clone()) for key, row in zip(fresh, side_by_side, strict=True))

    def _whole_schedules(self, missing: Iterable[_Wanted]) -> list[_Wanted]:
        """All steps of the schedule for each request that is new and somewhere on it."""
        if not self._hoists:
            return []
        schedule = list(zip(*self._plan.all_times.values(), strict=True))
        on_it = set(schedule)
        new = dict.fromkeys((key.request, key.place) for key in missing if key.times in on_it)
        self.hoists += len({request for request, _ in new})
        every = (_Wanted(request, times, place) for request, place in new for times in schedule)
        return [key for key in every if key not in self._kept]

    def _moments(self, times: Tensor) -> Moment:
        """The moment of rows that are computed: times [N, arguments]."""
        slot, known = self._slots.find(times)
        return Moment(slot, torch.zeros_like(slot), slot, known)

    def _opened(self) -> TemporalProgram:
        if self._program is None:
            if self._open is None:
                raise QuantError(
                    "a timestep or constant is not among those that this artifact has tables for, and it keeps no "
                    "layers to compute others: use its schedule, or quantize again for this one"
                )
            self._program = self._open()
        return self._program

    def _make_room(self, size: int, keys: Sequence[_Wanted]) -> None:
        used, wanted = sum(row.nbytes for row in self._kept.values()), set(keys)
        for key in [key for key in self._kept if key not in wanted]:
            if used + size <= self._capacity:
                return
            used -= self._kept.pop(key).nbytes


class _Slots:
    """Finds times in a schedule."""

    def __init__(self, plan: TemporalPlan) -> None:
        self._all = torch.tensor(list(zip(*plan.all_times.values(), strict=True)), dtype=torch.float64)
        self._sorted, self._order = self._all[:, 0].sort()

    def find(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(slot int64 [...], known bool [...]) of times float64 [..., arguments]: the nearest by the main argument."""
        main = times[..., 0].contiguous()
        after = torch.searchsorted(self._sorted, main).clamp(max=len(self._sorted) - 1)
        before = (after - 1).clamp(min=0)
        nearer = (self._sorted[before] - main).abs() < (self._sorted[after] - main).abs()
        slot = self._order[torch.where(nearer, before, after)]
        return slot, (self._all[slot] == times).all(-1)

    def find_rows(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows whose tokens [B, L, arguments] differ: by the token that is furthest back, the noisiest."""
        furthest = times[..., 0].argmax(dim=1)
        return self.find(times[torch.arange(times.shape[0]), furthest])


def _requests(call: Call) -> list[_Hash]:
    """What tells each row's constants and pooled text from others': a hash of their bytes."""
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(call.count)]
    for name, tensor in call.tensors().items():
        if call.role(name) not in ("constant", "pooled"):
            continue
        whole = tensor if name in call.rows else tensor.expand(call.count, *tensor.shape)
        rows = whole.detach().cpu().reshape(call.count, -1).contiguous().view(torch.uint8).numpy()
        for row, told in zip(rows, hashes, strict=True):
            told.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape[1:])}:".encode())
            told.update(row.tobytes())
    return [told.digest() for told in hashes]


def _distinct(requests: Sequence[_Hash], times: Tensor, per_row: int) -> tuple[list[_Wanted], Tensor]:
    """Each distinct pair of request and time, and for each of the times [N, arguments] its place among them [N]."""
    values, place = torch.unique(times, dim=0, return_inverse=True)
    told = {request: index for index, request in enumerate(dict.fromkeys(requests))}
    own = torch.tensor([told[request] for request in requests]).repeat_interleave(per_row)
    pairs, where = torch.unique(own * len(values) + place, return_inverse=True)
    names = list(told)
    found = [_Wanted(names[pair // len(values)], tuple(values[pair % len(values)].tolist())) for pair in pairs.tolist()]
    return found, where


def _each(requests: Sequence[_Hash], times: Tensor, per_row: int) -> tuple[list[_Wanted], Tensor]:
    """The same, with the places in the batch told apart."""
    values = [tuple(row) for row in times.tolist()]
    found = [_Wanted(requests[index // per_row], row, index) for index, row in enumerate(values)]
    return found, torch.arange(len(found))


def _along(rows: Tensor, like: Tensor) -> Tensor:
    """Values [B] shaped to meet [B] or [B, L]."""
    return rows.view(-1, *[1] * (like.ndim - 1))


def _on(call: Call, moment: Moment) -> Moment:
    """The moment on the device of the call's tensors."""
    device = next(iter(call.rows.values())).device
    features = None if moment.features is None else moment.features.to(device)
    row, branch, slot, known = (part.to(device) for part in (moment.row, moment.branch, moment.slot, moment.known))
    return Moment(row, branch, slot, known, features)


__all__ = ["Errors", "FeatureSource", "KeptLeaf", "Lookup", "Strategy", "Stub", "TemporalPlan", "make_plan"]
