"""The worker's half of the queue: wait, take, keep, settle. Knows leases and tokens, never devices or pictures.

Every method may be sent twice by the client library and acts once. A claim that was lost meanwhile (its lease ended,
another worker has the job) gets False: whoever hears it must delete the files made for that claim.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import Redis

from jobs.job import Failure, JobResult
from jobs.keys import LANES, RETURNED, Keys
from jobs.link import Link
from jobs.records import Claim, Renewal, WorkerInfo, job_from_pairs
from jobs.settings import Settings

MAX_WAIT_SECONDS = 2.0
"""A blocking read must end well before the connection's socket timeout of 5 s."""


class Claims:
    """What workers do with the queue: of all lanes, or of some."""

    def __init__(self, redis: Redis, settings: Settings, lanes: Sequence[str] = LANES) -> None:
        """Raises ValueError for a lane that there is not, or none at all."""
        if not lanes or not set(lanes) <= set(LANES):
            raise ValueError(f"lanes must be some of {LANES}; got {lanes}")
        self._settings = settings
        self._keys = Keys(settings.namespace)
        self._link = Link(redis, self._keys, settings)
        self._lanes = tuple(lanes)
        self._heard = {self._keys.bell(lane): "0" for lane in lanes}
        self._tokens: dict[str, str] = {}

    async def wait(self, timeout: float) -> frozenset[str]:
        """Wait up to `timeout` seconds (at most 2) until something was enqueued or a cancel was asked for.

        Returns the ids of jobs, anyone's, whose cancel was asked for since the last call; `renew` tells them too.
        """
        block = max(1, round(min(timeout, MAX_WAIT_SECONDS) * 1000))
        reply = await self._link.call("XREAD", "BLOCK", block, "STREAMS", *self._heard, *self._heard.values())
        canceled: set[str] = set()
        for bell, rings in cast("list[Any]", reply or []):
            self._heard[bell] = rings[-1][0]
            canceled |= {fields["cancel"] for _, fields in rings if "cancel" in fields}
        return frozenset(canceled)

    async def take(self, worker: str, room: int, lanes: Sequence[str] | None = None) -> list[Claim]:
        """Begin up to `room` jobs, the most urgent first; does not wait. They are running and leased when this returns.

        `lanes` are some of this object's, all by default.

        Urgency is creation time, put back by `ageing_seconds` for each step below high: a priority overtakes for that
        long and starves nobody. Lanes are equals. Jobs that lost a worker keep their place. When the reply is lost on
        the way, the next call by this object hands the same claims out again.
        """
        if worker == RETURNED:
            raise ValueError(f"a worker cannot be named {worker!r}")
        chosen = self._lanes if lanes is None else lanes
        if room < 1 or not chosen:
            return []
        token = self._tokens.setdefault(worker, secrets.token_hex(8))
        more = 1
        taken: list[Any] = []
        while more and not taken:
            more, *taken = await self._link.run("take", worker, token, room, *chosen)
        if taken:
            del self._tokens[worker]
        return [Claim(job_from_pairs(job_id, pairs), token) for job_id, pairs in taken]

    async def renew(self, claims: list[Claim]) -> Renewal:
        """Keep claims for another lease; tells which are lost and which jobs should be stopped."""
        if not claims:
            return Renewal()
        pairs = [part for claim in claims for part in (claim.job.id, claim.token)]
        lost, canceled = await self._link.run("renew", *pairs)
        return Renewal(frozenset(lost), frozenset(canceled))

    async def progress(self, claim: Claim, step: int, total: int) -> bool:
        """Record that `step` of `total` steps are done, once for each step; the caller throttles."""
        return bool(await self._link.run("progress", claim.job.id, claim.token, step, total))

    async def preview(self, claim: Claim, index: int, mime: str, b64: str) -> bool:
        """Publish preview `index` (0, 1, …), a small picture in base64; each index once."""
        return bool(await self._link.run("preview", claim.job.id, claim.token, index, mime, b64))

    async def succeed(self, claim: Claim, result: JobResult) -> bool:
        """Settle as succeeded. The result's files must lie safe on disk before."""
        return await self._settle(claim, "succeeded", result.model_dump_json())

    async def fail(self, claim: Claim, failure: Failure) -> bool:
        """Settle as failed: the job itself is at fault and another try would fail as well."""
        return await self._settle(claim, "failed", failure.model_dump_json())

    async def confirm_cancel(self, claim: Claim) -> bool:
        """Settle as canceled: the worker has stopped the job."""
        return await self._settle(claim, "canceled", "{}")

    async def _settle(self, claim: Claim, state: str, payload: str) -> bool:
        return bool(await self._link.run("settle", claim.job.id, claim.token, state, payload))

    async def give_back(self, claim: Claim, *, suspect: bool, reason: str) -> bool:
        """Return a job to its place in the queue.

        `suspect` says that the worker died by itself while it ran the job: after `max_suspect_attempts` of these the
        job fails with `reason` as its code (a stable word such as `worker_crashed` or `out_of_memory`); after
        `max_deliveries` of any kind it fails as `too_many_deliveries`. Both leave a dead letter. A job whose cancel was
        asked for is canceled instead.
        """
        return bool(await self._link.run("give_back", claim.job.id, claim.token, int(suspect), reason))

    async def reap(self, worker: str) -> int:
        """Return jobs whose lease has ended to the queue, uncounted; fail jobs that waited too long. How many of both.

        Every worker calls this every few seconds; `worker` is who found them. A server that just started reaps nothing
        for one lease, so that living workers can renew first.
        """
        return int(await self._link.run("reap", worker))

    async def heartbeat(self, worker: str, info: WorkerInfo) -> None:
        """Say that the worker lives, for one lease."""
        lease_ms = round(self._settings.lease_seconds * 1000)
        await self._link.pipeline(
            ("SET", self._keys.worker(worker), info.model_dump_json(), "PX", lease_ms),
            ("ZADD", self._keys.workers, info.started_at, worker),
        )

    async def farewell(self, worker: str) -> None:
        """Say that the worker is gone, without waiting for its heartbeat to end."""
        await self._link.pipeline(("DEL", self._keys.worker(worker)), ("ZREM", self._keys.workers, worker))

    async def workers(self) -> list[WorkerInfo]:
        """The workers whose heartbeat is fresh."""
        names = await self._link.call("ZRANGE", self._keys.workers, 0, -1)
        if not names:
            return []
        beats = await self._link.call("MGET", *(self._keys.worker(name) for name in names))
        gone = [name for name, beat in zip(names, beats, strict=True) if beat is None]
        if gone:
            await self._link.call("ZREM", self._keys.workers, *gone)
        return [WorkerInfo.model_validate_json(beat) for beat in beats if beat is not None]
