"""The name of every Redis key, with its type and its end. Knows names only, never what is stored or decided.

| name                       | type   | holds                                            | ends                      |
|----------------------------|--------|--------------------------------------------------|---------------------------|
| `{ns}:job:{id}`            | hash   | a job's record                                   | record TTL after its end  |
| `{ns}:ev:{id}`             | stream | its events, about the last 256                   | with it; 1 h if previewed |
| `{ns}:idem:{owner}:{key}`  | string | job id and fingerprint of an idempotent submit   | 24 h                      |
| `{ns}:jobs:{owner}`        | zset   | an owner's job ids by creation time              | trimmed at submits        |
| `{ns}:kind:{kind}:{owner}` | zset   | those of one kind                                | trimmed at submits        |
| `{ns}:q:{lane}:{prio}`     | stream | entries of jobs that are not final               | entries: with their jobs  |
| `{ns}:waiting:{lane}:{prio}` | zset | queued job ids by creation time                  | members: with that state  |
| `{ns}:queued`              | hash   | queued jobs per owner                            | fields: at zero           |
| `{ns}:taken:{token}`       | list   | what a `take` gave, should its reply be lost     | one lease                 |
| `{ns}:bell:{lane}`         | stream | rung when workers have something to do           | about the last 1024       |
| `{ns}:changed`             | stream | ids of jobs that have a new event                | about the last 4096       |
| `{ns}:dead:{lane}`         | stream | dead letters                                     | 30 days, about 10,000     |
| `{ns}:pace:{lane}`         | hash   | when a job last ended, how far apart ends are    | never                     |
| `{ns}:finished`            | stream | ids of jobs that succeeded, to learn costs from  | about the last 1024       |
| `{ns}:worker:{name}`       | string | a worker's heartbeat                             | one lease                 |
| `{ns}:workers`             | zset   | names of workers                                 | members: when found dead  |
| `{ns}:guard`               | hash   | the quality guard's records by model/profile     | never                     |
| `{ns}:guard:events`        | stream | changes of the guard's verdicts                  | about the last 1000       |
| `{ns}:probe`               | string | the last write probe                             | 60 s                      |
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.request import Priority

LANES = ("image", "video")
"""Pools of jobs by kind, each with streams of its own; an operator says which of them a worker takes from."""

GROUP = "workers"
"""The consumer group of every queue stream."""

RETURNED = "-returned"
"""The group's member that holds entries given back by their worker; no worker may have this name."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one namespace."""

    namespace: str

    def job(self, job_id: str) -> str:
        """Hash with a job's record."""
        return f"{self.namespace}:job:{job_id}"

    def events(self, job_id: str) -> str:
        """Stream of a job's events."""
        return f"{self.namespace}:ev:{job_id}"

    def idempotency(self, owner: str, key: str) -> str:
        """What an idempotency key stands for."""
        return f"{self.namespace}:idem:{owner}:{key}"

    def owned(self, owner: str) -> str:
        """Sorted set of an owner's job ids."""
        return f"{self.namespace}:jobs:{owner}"

    def owned_of(self, kind: str, owner: str) -> str:
        """Sorted set of an owner's job ids of one kind."""
        return f"{self.namespace}:kind:{kind}:{owner}"

    def queue(self, lane: str, priority: Priority) -> str:
        """Stream of one lane and priority."""
        return f"{self.namespace}:q:{lane}:{priority.value}"

    def waiting(self, lane: str, priority: Priority) -> str:
        """Sorted set of queued job ids of one lane and priority."""
        return f"{self.namespace}:waiting:{lane}:{priority.value}"

    def taken(self, token: str) -> str:
        """List of job ids that one take handed out."""
        return f"{self.namespace}:taken:{token}"

    def worker(self, name: str) -> str:
        """A worker's heartbeat."""
        return f"{self.namespace}:worker:{name}"

    @property
    def workers(self) -> str:
        """Sorted set of worker names."""
        return f"{self.namespace}:workers"

    @property
    def queued(self) -> str:
        """Hash of queued jobs per owner."""
        return f"{self.namespace}:queued"

    def bell(self, lane: str) -> str:
        """Stream that wakes the workers of a lane."""
        return f"{self.namespace}:bell:{lane}"

    @property
    def changed(self) -> str:
        """Stream that wakes those who follow jobs."""
        return f"{self.namespace}:changed"

    def dead(self, lane: str) -> str:
        """Stream of dead letters."""
        return f"{self.namespace}:dead:{lane}"

    def pace(self, lane: str) -> str:
        """Hash with the rhythm in which jobs end."""
        return f"{self.namespace}:pace:{lane}"

    @property
    def finished(self) -> str:
        """Stream of jobs that succeeded."""
        return f"{self.namespace}:finished"

    @property
    def guard(self) -> str:
        """Hash of the quality guard's records."""
        return f"{self.namespace}:guard"

    @property
    def guard_events(self) -> str:
        """Stream of changes of the guard's verdicts."""
        return f"{self.namespace}:guard:events"

    @property
    def probe(self) -> str:
        """What is written to learn whether Redis takes writes."""
        return f"{self.namespace}:probe"

    def lua_table(self) -> str:
        """The same names as a Lua table, for scripts that meet job ids only while they run.

        Entries of jobs, events, owners and tokens are prefixes. Scripts may so touch keys that are not declared:
        Halftone promises a single Redis node, never a cluster.
        """
        single = {
            "job": self.job(""),
            "events": self.events(""),
            "owned": self.owned(""),
            "kind": f"{self.namespace}:kind:",
            "taken": self.taken(""),
            "queued": self.queued,
            "changed": self.changed,
            "finished": self.finished,
            "guard": self.guard,
            "guard_events": self.guard_events,
        }
        pairs = [f"{name}={value!r}" for name, value in single.items()]
        for name, by_lane in (("bell", self.bell), ("dead", self.dead), ("pace", self.pace)):
            pairs.append(f"{name}={{{', '.join(f'{lane}={by_lane(lane)!r}' for lane in LANES)}}}")
        for name, key in (("queue", self.queue), ("waiting", self.waiting)):
            lanes = (f"{lane}={{{', '.join(f'{p.value}={key(lane, p)!r}' for p in Priority)}}}" for lane in LANES)
            pairs.append(f"{name}={{{', '.join(lanes)}}}")
        return "{" + ", ".join(pairs) + "}"
