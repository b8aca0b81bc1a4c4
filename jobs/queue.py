"""The queue: submit, look, cancel, and (inherited) all that workers do. Knows no HTTP and no device.

Decides nothing itself: each decision is one Lua script, so that it happens wholly or not at all, and once even when it
is sent twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from jobs.claims import Claims
from jobs.errors import IdempotencyConflict, InvalidRequest, JobFinished, NotFound, QueueFull
from jobs.guard import GuardLog
from jobs.job import JOB_ID, Job, JobState, new_job_id
from jobs.keys import LANES
from jobs.records import (
    Backlog,
    Claim,
    DeadLetter,
    JobPage,
    LaneStats,
    QueueStats,
    Renewal,
    RunningJob,
    Submission,
    WaitingJob,
    WorkerInfo,
    job_from_hash,
    job_from_pairs,
)
from jobs.request import AnyRequest, Priority

__all__ = [
    "Backlog",
    "Claim",
    "DeadLetter",
    "JobPage",
    "JobQueue",
    "QueueStats",
    "Renewal",
    "Submission",
    "WorkerInfo",
    "fingerprint",
]

MAX_PAGE = 100
_BATCH = 100

Jobs = list[Job]
Letters = list[DeadLetter]
"""Lists by another name: inside the class, `list` is its method."""


def fingerprint(body: object, owner: str) -> str:
    """Sha256 of a JSON value in canonical form and its owner: equal exactly when two submits ask for the same."""
    canonical = json.dumps([owner, body], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class JobQueue(Claims):
    """The queue. Every method may raise `Unavailable` when Redis is away."""

    async def submit(
        self,
        request: AnyRequest,
        *,
        job_id: str | None = None,
        owner: str = "",
        idempotency_key: str | None = None,
        body: object = None,
        estimate: float | None = None,
        room_in: float | None = None,
    ) -> Submission:
        """Accept a job, or return the one that the same `job_id` or `idempotency_key` got before.

        `body` is what the user sent, as a JSON value: two submits are the same when it is. Left out, the request is
        compared, which differs by its seed when that was drawn at random. `estimate` is how many device seconds the job
        is expected to take, `room_in` after how many seconds a full queue may have room. Once this returns, the job is
        not lost.
        Raises `IdempotencyConflict` when the id or key came with another body or owner, `QueueFull` (with
        `retry_after`) when too many jobs wait, `InvalidRequest` for an id that is not 32 hexadecimal digits.
        """
        chosen = new_job_id() if job_id is None else _checked(job_id)
        record = request.model_dump_json()
        mark = fingerprint(json.loads(record) if body is None else body, owner)
        key = "" if idempotency_key is None else self._keys.idempotency(owner, idempotency_key)
        numbers = ("" if value is None else f"{value:.3f}" for value in (estimate, room_in))
        place = (request.lane, request.priority.value)
        facts = (*place, record, request.kind, *numbers)
        verdict, *rest = await self._link.run("submit", chosen, owner, mark, key, *facts)
        if verdict == "created":
            job = Job(id=chosen, owner=owner, request=request, state=JobState.QUEUED, created_at=float(rest[0]))
            return Submission(job, created=True)
        if verdict == "exists":
            # a fresh id that exists already: the library sent our submit twice, and the first one did it
            return Submission(job_from_pairs(rest[0], rest[1]), created=job_id is None and rest[0] == chosen)
        if verdict == "conflict":
            what = "job id" if rest[0] == "id" else "idempotency key"
            raise IdempotencyConflict(f"this {what} was used before with a different request; use a new one")
        limit, retry_after = rest
        raise QueueFull(f"{limit}; try again in {retry_after} s", retry_after=float(retry_after))

    async def get(self, job_id: str, owner: str | None = None) -> Job:
        """A job's record. Raises `NotFound`, also for a job of another owner when `owner` is given."""
        fields = await self._link.call("HGETALL", self._keys.job(job_id)) if JOB_ID.fullmatch(job_id) else None
        if not fields or "deleted" in fields or (owner is not None and fields["owner"] != owner):
            raise _unknown(job_id)
        return job_from_hash(job_id, fields)

    async def list(
        self,
        owner: str,
        *,
        limit: int = 20,
        after: str | None = None,
        state: JobState | None = None,
        kind: str | None = None,
        oldest_first: bool = False,
    ) -> JobPage:
        """An owner's jobs, newest first: at most `limit` (1 to 100) beyond job `after`, of one state and kind if given.

        Raises `NotFound` when `after` is no such job of this owner, `InvalidRequest` for a limit out of bounds.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit must be from 1 to {MAX_PAGE}; got {limit}", param="limit")
        listing = self._keys.owned(owner) if kind is None else self._keys.owned_of(kind, owner)
        rank = 0
        if after is not None:
            found = await self._link.call("ZRANK" if oldest_first else "ZREVRANK", listing, after)
            if found is None:
                raise _unknown(after)
            rank = int(found) + 1
        jobs: Jobs = []
        while len(jobs) <= limit:
            command = "ZRANGE" if oldest_first else "ZREVRANGE"
            ids = await self._link.call(command, listing, rank, rank + _BATCH - 1)
            if not ids:
                break
            rank += len(ids)
            jobs += [job for job in await self.records(ids) if state is None or job.state is state]
        return JobPage(jobs[:limit], has_more=len(jobs) > limit)

    async def records(self, ids: Sequence[str]) -> Jobs:
        """The records of these jobs, whoever's; those that are gone are left out."""
        hashes = await self._link.pipeline(*(("HGETALL", self._keys.job(job_id)) for job_id in ids))
        return [
            job_from_hash(job_id, fields)
            for job_id, fields in zip(ids, hashes, strict=True)
            if fields and "deleted" not in fields
        ]

    async def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """Stop a job: a queued one is canceled when this returns, a running one is asked to stop and says so itself.

        Canceling a canceled job is no error. Raises `NotFound`, `JobFinished`.
        """
        if not JOB_ID.fullmatch(job_id):
            raise _unknown(job_id)
        verdict, *rest = await self._link.run("cancel", job_id, "any" if owner is None else "owner", owner or "")
        if verdict == "missing":
            raise _unknown(job_id)
        job = job_from_pairs(job_id, rest[0])
        if verdict == "finished":
            raise JobFinished(f"job {job_id} has {job.state.value} already and cannot be canceled")
        return job

    async def delete(self, job_id: str, owner: str | None = None) -> Job:
        """Forget a job; as it stood before. A queued one is canceled first. A running one is asked to stop, is not to
        be seen any more, and goes when its worker has stopped. Files of a finished one are the caller's to delete.

        Raises `NotFound`.
        """
        if not JOB_ID.fullmatch(job_id):
            raise _unknown(job_id)
        verdict, *rest = await self._link.run("delete", job_id, "any" if owner is None else "owner", owner or "")
        if verdict == "missing":
            raise _unknown(job_id)
        return job_from_pairs(job_id, rest[0])

    async def position(self, job: Job, lanes: Collection[str] = ()) -> int:
        """How many queued jobs are more urgent than this one; 0 when it is next, or not queued any more.

        Jobs of its own lane count, and those of `lanes`: name the lanes that its workers take from too.
        """
        counted = {job.request.lane, *lanes}
        return int(await self._link.run("position", job.id, job.request.lane, job.request.priority.value, *counted))

    async def stats(self) -> QueueStats:
        """Depth and age by lane and priority, running jobs, dead letters: one consistent look."""
        pending, dead, *rest = await self._link.run("stats")
        lanes = {}
        for index, lane in enumerate(LANES):
            own = rest[2 * len(Priority) * index : 2 * len(Priority) * (index + 1)]
            depth = dict(zip(Priority, map(int, own[::2]), strict=True))
            lanes[lane] = LaneStats(depth, dict(zip(Priority, map(float, own[1::2]), strict=True)))
        return QueueStats(lanes, int(pending), int(dead))

    async def backlog(self) -> Backlog:
        """All work that is not done, with what each job is expected to take. Looks at every job: do not ask often."""
        running, waiting = await self._link.run("backlog")
        return Backlog(
            tuple(
                RunningJob(job_id, lane, _number(estimate), 1 - int(step) / max(1, int(total)))
                for job_id, lane, estimate, step, total in _rows(running, 5)
            ),
            tuple(
                WaitingJob(job_id, lane, _number(estimate), float(due))
                for job_id, lane, estimate, due in _rows(waiting, 4)
            ),
        )

    async def finished(self, after: str = "0", limit: int = 256) -> tuple[str, Jobs]:
        """The last up to `limit` jobs that succeeded since a place, oldest first, and the place that they reach to."""
        entries = await self._link.call("XREVRANGE", self._keys.finished, "+", f"({after}", "COUNT", limit)
        if not entries:
            return after, []
        return entries[0][0], await self.records([fields["job"] for _, fields in reversed(entries)])

    async def dead_letters(self, limit: int = 100) -> Letters:
        """The newest dead letters, newest first."""
        looks = (("XREVRANGE", self._keys.dead(lane), "+", "-", "COUNT", limit) for lane in LANES)
        entries = [entry for lane in await self._link.pipeline(*looks) for entry in lane]
        entries.sort(key=lambda entry: tuple(map(int, entry[0].split("-"))), reverse=True)
        return [DeadLetter.model_validate({"id": key} | _parsed(fields)) for key, fields in entries[:limit]]

    @cached_property
    def guard(self) -> GuardLog:
        """The quality guard's records beside this queue."""
        return GuardLog(self._link, self._keys)

    async def probe(self) -> None:
        """Write something small: raises `Unavailable` when Redis is away or refuses writes (a ping would not tell)."""
        await self._link.call("SET", self._keys.probe, "1", "EX", 60)


def _parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(text) if name in ("failure", "request") else text for name, text in fields.items()}


def _rows(flat: Sequence[str], width: int) -> Iterator[Sequence[str]]:
    return (flat[i : i + width] for i in range(0, len(flat), width))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _checked(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise InvalidRequest("a job id must be 32 hexadecimal digits in lower case", param="id")
    return job_id


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id[:64]!r}; it may have expired")
