"""The quality guard's records in Redis: counted, judged, lifted, each change whole or not at all. Knows no pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from jobs.errors import NotFound, Unavailable
from jobs.guard_record import Comparison, GuardRecord, Verdict, after, empty, lifted
from jobs.keys import Keys
from jobs.link import Link

log = logging.getLogger(__name__)

ATTEMPTS = 50
"""Tries at one change; each that fails means that another one succeeded."""


class GuardEvent(BaseModel):
    """A verdict changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    at: float
    model: str
    profile: str
    before: Verdict
    verdict: Verdict
    reason: str
    comparisons: int


class GuardLog:
    """All records of one namespace. Every method may raise `Unavailable` when Redis is away."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def records(self) -> list[GuardRecord]:
        """Every record, by model and profile."""
        found = await self._link.call("HGETALL", self._keys.guard)
        return sorted(map(GuardRecord.model_validate_json, found.values()), key=lambda record: record.key)

    async def record(self, one: Comparison) -> GuardRecord:
        """Count a comparison, once however often it is sent; the record with it."""

        def change(old: GuardRecord | None, now: float) -> GuardRecord:
            return after(old or empty(one.model, one.profile, one.artifact, now), one, now)

        return await self._change(one.model, one.profile, change)

    async def lift(self, model: str, profile: str) -> GuardRecord:
        """Take a verdict back: the profile is healthy until new evidence says otherwise. Raises `NotFound`."""

        def change(old: GuardRecord | None, now: float) -> GuardRecord:
            if old is None:
                raise NotFound(f"the guard has compared nothing of {model}/{profile}: there is no verdict to lift")
            return lifted(old, now)

        return await self._change(model, profile, change)

    async def events(self, limit: int = 100) -> list[GuardEvent]:
        """The latest changes of verdicts, newest first."""
        entries = await self._link.call("XREVRANGE", self._keys.guard_events, "+", "-", "COUNT", limit)
        return [GuardEvent.model_validate_json(fields["d"]) for _, fields in entries]

    async def _change(
        self, model: str, profile: str, change: Callable[[GuardRecord | None, float], GuardRecord]
    ) -> GuardRecord:
        field = f"{model}/{profile}"
        for _ in range(ATTEMPTS):
            text, time = await self._link.pipeline(("HGET", self._keys.guard, field), ("TIME",))
            old = None if text is None else GuardRecord.model_validate_json(text)
            new = change(old, _seconds(time))
            if new == old:
                return new
            event = _event(old, new)
            told = "" if event is None else event.model_dump_json()
            if await self._link.run("guard", field, text or "", new.model_dump_json(), told):
                if event is not None:
                    _log(event)
                return new
        raise Unavailable(f"the guard's record of {field} changes too fast to be changed; try again", retry_after=1)


def _event(old: GuardRecord | None, new: GuardRecord) -> GuardEvent | None:
    before = Verdict.HEALTHY if old is None else old.verdict
    if before is new.verdict:
        return None
    return GuardEvent(
        at=new.updated,
        model=new.model,
        profile=new.profile,
        before=before,
        verdict=new.verdict,
        reason=new.reason,
        comparisons=new.comparisons,
    )


def _log(event: GuardEvent) -> None:
    log.log(
        logging.WARNING if event.verdict is Verdict.FAILED else logging.INFO,
        "guard: %s/%s is %s, was %s: %s",
        *(event.model, event.profile, event.verdict.value, event.before.value, event.reason),
    )


def _seconds(time: Any) -> float:
    seconds, microseconds = time
    return int(seconds) + int(microseconds) / 1e6
