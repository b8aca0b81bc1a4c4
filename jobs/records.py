"""What goes into and comes out of the queue, as data. Knows a record's shape in Redis, never how it is decided on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from jobs.job import Failure, Job, JobResult, JobState
from jobs.keys import LANES
from jobs.request import AnyRequest, Priority, read_request


@dataclass(frozen=True, slots=True)
class Submission:
    """Answer to a submit. `created` is False when the same job was accepted before: `job` is that first one."""

    job: Job
    created: bool


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs of an owner, newest first; ask again `after` the last one's id while `has_more`."""

    jobs: list[Job]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in a worker's hands. Whatever is done about the job must show `token` (16 hexadecimal digits)."""

    job: Job
    token: str

    @property
    def suspect(self) -> bool:
        """Whether the job was there when a worker died by itself: run it alone, so that it cannot hurt neighbours."""
        return self.job.suspect_attempts > 0


@dataclass(frozen=True, slots=True)
class Renewal:
    """Which of the renewed claims are not ours any more, and which jobs somebody wants to stop."""

    lost: frozenset[str] = frozenset()
    canceled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LaneStats:
    """Who waits in one lane, by priority. Ages in seconds, 0 when nothing waits."""

    depth: Mapping[Priority, int]
    oldest_age: Mapping[Priority, float]


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment."""

    lanes: Mapping[str, LaneStats] = field(default_factory=dict)
    pending: int = 0
    dead: int = 0

    @property
    def depth(self) -> Mapping[Priority, int]:
        """How many wait in all lanes, by priority."""
        return {priority: sum(lane.depth[priority] for lane in self.lanes.values()) for priority in Priority}

    @property
    def oldest_age(self) -> Mapping[Priority, float]:
        """How long the oldest of any lane has waited, by priority."""
        ages = {priority: [lane.oldest_age[priority] for lane in self.lanes.values()] for priority in Priority}
        return {priority: max(found, default=0.0) for priority, found in ages.items()}


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job in a worker's hands. `estimate`: the device seconds that were expected of all of it, if any were."""

    id: str
    lane: str
    estimate: float | None
    left: float
    """Share of its steps that are still to do."""


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A queued job. Those that are `due` earlier (Unix seconds) are taken first."""

    id: str
    lane: str
    estimate: float | None
    due: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """All work that is not done."""

    running: tuple[RunningJob, ...] = ()
    waiting: tuple[WaitingJob, ...] = ()


class DeadLetter(BaseModel):
    """A job that was given up on, with what is needed to understand or repeat it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    job_id: str
    at: float
    failure: Failure
    deliveries: int
    suspect_attempts: int
    worker: str
    request: AnyRequest


class WorkerInfo(BaseModel):
    """What a worker says of itself with every heartbeat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    state: Literal["starting", "ready", "draining"]
    lanes: tuple[str, ...] = LANES
    models: tuple[str, ...] = ()
    profiles: Mapping[str, tuple[str, ...]] = {}
    device: str = ""
    running: int = 0
    room: int = 0
    host: str = ""
    pid: int = 0
    started_at: float = 0.0

    def serves(self, model: str, profile: str, lane: str | None = None) -> bool:
        """Whether this worker can run the profile of the model now, and takes from the lane if one is named."""
        takes = lane is None or lane in self.lanes
        return takes and self.state != "draining" and profile in self.profiles.get(model, ())


def job_from_hash(job_id: str, fields: Mapping[str, str]) -> Job:
    """A job's record from the fields of its Redis hash."""
    times = {name: float(fields[name]) for name in ("started_at", "finished_at", "expires_at") if name in fields}
    result, failure = fields.get("result"), fields.get("failure")
    return Job(
        id=job_id,
        owner=fields["owner"],
        request=read_request(fields["request"]),
        state=JobState(fields["state"]),
        created_at=float(fields["created_at"]),
        started_at=times.get("started_at"),
        finished_at=times.get("finished_at"),
        expires_at=times.get("expires_at"),
        deliveries=int(fields.get("deliveries", 0)),
        suspect_attempts=int(fields.get("suspect_attempts", 0)),
        worker=fields.get("worker"),
        cancel_requested="cancel_requested" in fields,
        step=int(fields.get("step", 0)),
        total_steps=int(fields.get("total_steps", 0)),
        result=JobResult.model_validate_json(result) if result else None,
        failure=Failure.model_validate_json(failure) if failure else None,
    )


def job_from_pairs(job_id: str, pairs: list[str]) -> Job:
    """The same from a flat list of names and values, as scripts return a hash."""
    return job_from_hash(job_id, dict(zip(pairs[::2], pairs[1::2], strict=True)))
