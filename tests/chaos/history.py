"""What clients saw and what the queue says at the end, and the rules that both must keep (in the manner of Jepsen).

Knows no process and sends nothing: it is filled by the clients and judges after the run.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jobs.events import Event
from jobs.files import ResultStore
from jobs.job import Job, JobState

Outcome = Literal["ok", "refused", "unknown"]
"""`refused` is an answer that says no; after `unknown` (no answer) a submit may or may not have happened."""

FINAL = {"succeeded", "failed", "canceled"}


@dataclass(slots=True)
class Submit:
    """One client's wish: one job, however often it had to ask."""

    name: str
    invoked_at: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)
    job_ids: set[str] = field(default_factory=set)  # every answer must name the same job
    seen: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # status and hashes, as polled
    cancel_confirmed: bool = False
    settled_after: float | None = None

    def saw(self, status: str, hashes: Sequence[str]) -> None:
        """Note what a poll answered, unless it is what the last one did."""
        state = (status, tuple(hashes))
        if not self.seen or self.seen[-1] != state:
            self.seen.append(state)


@dataclass(slots=True)
class History:
    """All submits of a run."""

    submits: list[Submit] = field(default_factory=list)

    def submit(self, name: str) -> Submit:
        """Begin to follow a wish."""
        self.submits.append(Submit(name))
        return self.submits[-1]

    @property
    def accepted(self) -> set[str]:
        """The ids of all jobs that were accepted for sure."""
        return {job_id for submit in self.submits for job_id in submit.job_ids}

    @property
    def settled(self) -> int:
        """How many wishes came to their end so far."""
        return sum(submit.settled_after is not None for submit in self.submits)

    def faults(self) -> list[str]:
        """What clients saw that must not be."""
        found = []
        for submit in self.submits:
            if len(submit.job_ids) > 1:
                found.append(f"{submit.name}: repeated submits made {len(submit.job_ids)} jobs")
            finals = [state for state in submit.seen if state[0] in FINAL]
            if "ok" in submit.outcomes and not finals:
                found.append(f"{submit.name}: accepted and lost; seen {submit.seen}")
            if len(finals) > 1:
                found.append(f"{submit.name}: two ends: {finals}")
            if finals and submit.seen[-1] not in finals:
                found.append(f"{submit.name}: went on after its end: {submit.seen}")
            if submit.cancel_confirmed and finals and finals[0][0] != "canceled":
                found.append(f"{submit.name}: canceled, and then {finals[0][0]}")
        return found


def log_faults(job: Job, events: Iterable[Event]) -> list[str]:
    """What a job's own log tells that must not be: the order of its states, and one end, the one of its record."""
    found = []
    state, deliveries = "", 0
    for event in events:
        legal = {
            "queued": state == "",
            "started": state in {"queued", "requeued"} and event.data.get("delivery") == deliveries + 1,
            "progress": state == "started",
            "preview": state == "started",
            "requeued": state == "started",
            "succeeded": state == "started",
            "failed": state in {"queued", "started", "requeued"},
            "canceled": state in {"queued", "started", "requeued"},
        }[event.type]
        if not legal:
            found.append(f"job {job.id}: {event.type} after {state or 'nothing'} ({event.data})")
        if event.type == "started":
            deliveries += 1
        if event.type not in {"progress", "preview"}:
            state = event.type
    if state != job.state.value:
        found.append(f"job {job.id}: its record says {job.state.value}, its log ends with {state or 'nothing'}")
    return found


def file_faults(jobs: Iterable[Job], on_disk: set[str]) -> list[str]:
    """Results without a file, files without a result."""
    wanted = {file.id for job in jobs if job.result for file in job.result.files}
    lost = [f"result file {name} is missing" for name in sorted(wanted - on_disk)]
    return lost + [f"orphan file {name}" for name in sorted(on_disk - wanted)]


def content_faults(jobs: Iterable[Job], store: ResultStore) -> list[str]:
    """Files that are not what their record says, or not what a quiet run makes: all wishes are for one picture."""
    found, sums = [], set()
    for file in (file for job in jobs if job.result for file in job.result.files):
        with store.open(file.id) as picture:
            told, real = file.sha256, hashlib.sha256(picture.read()).hexdigest()
        sums.add(real)
        if told != real:
            found.append(f"result file {file.id} is not what its record says")
    return found + ([f"{len(sums)} different pictures of one wish"] if len(sums) > 1 else [])


def summary(history: History, jobs: Sequence[Job]) -> str:
    """One line for people."""
    outcomes = Counter(outcome for submit in history.submits for outcome in submit.outcomes)
    states = Counter(job.state.value for job in jobs)
    again = sum(job.deliveries > 1 for job in jobs)
    late = sorted(submit.settled_after for submit in history.submits if submit.settled_after is not None)
    median, worst = (late[len(late) // 2], late[-1]) if late else (0.0, 0.0)
    return (
        f"{len(history.submits)} wishes, {dict(outcomes)} answers; {len(jobs)} jobs {dict(states)}, {again} run again; "
        f"settled after {median:.2f} s (median), {worst:.2f} s (worst)"
    )


def unsettled(jobs: Iterable[Job]) -> list[str]:
    """Jobs that have no end."""
    return [f"job {job.id} is {job.state.value}" for job in jobs if job.state not in set(map(JobState, FINAL))]
