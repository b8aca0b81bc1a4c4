"""Which models and profiles are in memory: loaded when first leased, least recently used out, never a busy one.

Knows bytes and times of use. How things are loaded is given to it; must not import torch or know the channel.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jobs.errors import JobFailed
from workers.hub import Served
from workers.task import Task

if TYPE_CHECKING:
    from pipelines.load import Components
    from quant import Grow

log = logging.getLogger(__name__)

REFERENCE = "@reference"
"""After a profile's name: the profile opened as torch modules, to look at its layers; not what serves it."""

LOOK_SECONDS = 0.2
"""Longest sleep between two looks at whether a waiting job was canceled."""


class TooLarge(JobFailed):
    """The model does not fit into the budget even alone."""

    code = "out_of_memory"


class NoRoom(Exception):
    """Background work found no memory to spare, or another load under way: nothing is evicted for it but idle profiles
    that were opened to look at their layers.
    """


class Loader(Protocol):
    """How things get into memory. Called on the leasing job's thread, one call at a time."""

    def estimate(self, model: str, profile: str | None) -> int:
        """Bytes, about, that the parts shared by a model's profiles (None), or one profile's denoiser, will take."""

    def components(self, model: str) -> Components:
        """Loads what all profiles of a model share."""

    def denoiser(self, model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        """Loads a profile's denoiser and makes it ready to run; if `quick`, runs nothing on the way.

        It asks `grow` before it takes more than estimated.
        """


@dataclass(frozen=True)
class Arrival:
    """A profile became resident; `seconds` with all that had to be loaded for it."""

    served: Served
    seconds: float


@dataclass(frozen=True)
class Growth:
    """A resident profile takes more or less memory than before."""

    served: Served


@dataclass(frozen=True)
class Departure:
    """A profile left memory."""

    model: str
    profile: str
    reason: str


@dataclass(frozen=True)
class Lease:
    """What a job holds while it runs; `load_seconds` is how long it took to get."""

    components: Components
    served: Served
    load_seconds: float


@dataclass
class _Entry:
    thing: Any  # Components or Served
    users: int = 0
    used: int = 0

    @property
    def weights_bytes(self) -> int:
        """What it takes now: compiled copies come and go."""
        weighed = self.thing.denoiser if isinstance(self.thing, Served) else self.thing
        return int(weighed.weights_bytes)


_Key = tuple[str, str | None]  # (model, None) is what all profiles of the model share

Event = Arrival | Growth | Departure


class Residents:
    """The things in memory, under a budget of bytes."""

    def __init__(self, loader: Loader, budget_bytes: int, tell: Callable[[Event], None]) -> None:
        self._loader = loader
        self._budget = budget_bytes
        self._tell = tell
        self._entries: dict[_Key, _Entry] = {}
        self._loading: dict[_Key, int] = {}  # bytes that are held for what is not there yet
        self._changed = threading.Condition()
        self._door = threading.Lock()  # one loads at a time: the libraries change global state while they do
        self._pressed = False  # somebody waits for room: nobody may keep the busy ones busy by the short way
        self._clock = itertools.count(1)

    @property
    def weights_bytes(self) -> int:
        """Bytes of everything resident, as it is now."""
        with self._changed:
            return sum(entry.weights_bytes for entry in self._entries.values())

    @property
    def profiles(self) -> list[tuple[str, str]]:
        """(model, profile) of everything resident, the least recently used first."""
        with self._changed:
            keys = sorted(self._entries, key=lambda key: self._entries[key].used)
            return [(model, profile) for model, profile in keys if profile is not None]

    @property
    def pressed(self) -> bool:
        """Whether a user's job waits for what is in use to become idle."""
        return self._pressed

    @contextmanager
    def lease(self, model: str, profile: str, task: Task) -> Iterator[Lease]:
        """Holds a profile in memory, loading it first where it is not.

        Raises:
            TooLarge: it does not fit into the budget even with all else gone.
            JobCanceledSignal: the task was canceled while it waited.
            NoRoom: the task is in the background and there is no room to spare.
        """
        started = time.monotonic()
        keys: list[_Key] = [(model, None), (model, profile)]
        if not self._pin_resident(keys, unless_pressed=True):
            self._enter(task)
            try:
                if not self._pin_resident(keys, unless_pressed=False):
                    self._load(model, profile, task)
            finally:
                self._door.release()
        try:
            things = [self._entries[key].thing for key in keys]
            yield Lease(things[0], things[1], time.monotonic() - started)
        finally:
            self._unpin(keys)

    def _enter(self, task: Task) -> None:
        if task.background:
            if not self._door.acquire(blocking=False):
                raise NoRoom("another profile is being loaded")
            return
        while not self._door.acquire(timeout=LOOK_SECONDS):
            task.check()

    def _pin_resident(self, keys: list[_Key], *, unless_pressed: bool) -> bool:
        with self._changed:
            if (self._pressed and unless_pressed) or any(key not in self._entries for key in keys):
                return False
            for key in keys:
                self._entries[key].users += 1
            return True

    def _unpin(self, keys: list[_Key]) -> None:
        with self._changed:
            for key in keys:
                self._entries[key].users -= 1
                self._entries[key].used = next(self._clock)
            self._trim(self._budget)
            self._changed.notify_all()

    def _load(self, model: str, profile: str, task: Task) -> None:
        """Loads what is missing and leaves both keys pinned. Called inside the door."""
        started = time.monotonic()
        shared: _Key = (model, None)
        if not self._pin_resident([shared], unless_pressed=False):
            with self._room_for(shared, task):
                self._add(shared, self._loader.components(model))
        own: _Key = (model, profile)
        try:
            with self._room_for(own, task):
                components: Components = self._entries[shared].thing
                grow = partial(self._grow, own)
                served = self._loader.denoiser(model, profile, components, grow, quick=task.background)
                self._add(own, served)
        except BaseException:
            self._unpin([shared])
            raise
        self._tell(Arrival(served, time.monotonic() - started))

    def _add(self, key: _Key, thing: Any) -> None:
        with self._changed:
            self._entries[key] = _Entry(thing, users=1, used=next(self._clock))
            self._loading.pop(key, None)
            self._trim(self._budget)

    @contextmanager
    def _room_for(self, key: _Key, task: Task) -> Iterator[None]:
        """Holds room by the key's estimate until it is there, or cannot be loaded."""
        self._make_room(key, task)
        try:
            yield
        finally:
            with self._changed:
                self._loading.pop(key, None)

    def _grow(self, key: _Key, held: int, more: int, take: Callable[[], None]) -> bool:
        """Gives what is resident, or being loaded, more room; idle things go for it, busy ones never do."""
        with self._changed:
            entry, reckoned = self._entries.get(key), self._loading.get(key)
            if entry is None and reckoned is None:
                return False  # it was let go: nobody would count what it takes
            growth = more if reckoned is None else max(0, held + more - reckoned)
            self._trim(self._budget - growth)
            if self._total() + growth > self._budget:
                return False
            take()
            if reckoned is not None:
                self._loading[key] = reckoned + growth
            if entry is not None:
                self._tell(Growth(entry.thing))
            return True

    def _make_room(self, key: _Key, task: Task) -> None:
        """Evicts idle things, and waits for busy ones to become idle, until the key's estimate fits."""
        need = self._loader.estimate(*key)
        try:
            while True:
                task.check()
                with self._changed:
                    self._trim(self._budget - need, references_only=task.background)
                    if task.background and self._total() + need > self._budget:
                        raise NoRoom(f"{key[0]}/{key[1] or 'shared parts'} needs about {need} bytes more")
                    if self._total() + need <= self._budget:
                        self._loading[key] = need
                        return
                    if not self._busy_with_others(key[0]):
                        raise TooLarge(
                            f"{key[0]} needs about {need + self._total()} bytes of memory and the budget is "
                            f"{self._budget}; raise HALFTONE_MEMORY_BUDGET_BYTES or use a smaller profile"
                        )
                    self._pressed = True
                    self._changed.wait(LOOK_SECONDS)
        finally:
            self._pressed = False

    def _busy_with_others(self, model: str) -> bool:
        """Whether anything may still become idle: all that is in use but the shared parts that the loader holds."""
        return any(entry.users > int(key == (model, None)) for key, entry in self._entries.items())

    def _trim(self, limit: int, *, references_only: bool = False) -> None:
        """Evicts idle things, the least recently used first, until the total is within the limit or all are busy."""
        while self._total() > limit and (idle := self._idle(references_only)):
            (model, profile), entry = min(idle, key=lambda item: item[1].used)
            del self._entries[model, profile]
            log.info("evicted %s/%s: %d bytes", model, profile or "shared parts", entry.weights_bytes)
            if profile is not None:
                entry.thing.close()
                self._tell(Departure(model, profile, "memory_budget"))
            del entry, idle
            gc.collect()  # modules are full of cycles; their memory is wanted now

    def _idle(self, references_only: bool) -> list[tuple[_Key, _Entry]]:
        """What nobody uses; a model's shared parts only once none of its profiles is left."""
        held = {model for model, profile in self._entries if profile is not None}
        return [
            (key, entry)
            for key, entry in self._entries.items()
            if entry.users == 0
            and not (key[1] is None and key[0] in held)
            and (not references_only or (key[1] or "").endswith(REFERENCE))
        ]

    def _total(self) -> int:
        """Bytes of all that is there, and of what is held for all that is not there yet."""
        return sum(entry.weights_bytes for entry in self._entries.values()) + sum(self._loading.values())
