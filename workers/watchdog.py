"""When is a child, or a job in it, to be given up? A pure function of times; kills nobody itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.child import Cause, Death
from workers.running import Phase, Running
from workers.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Verdict:
    """The child is to be killed. `culprits` are the runs it is killed for; empty when it is not a job's fault."""

    death: Death
    culprits: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of a child: seconds since its start and since its last message, and what it is doing."""

    age: float
    silence: float
    ready: bool
    frozen: bool


def judge(vitals: Vitals, runs: Iterable[Running], now: float, bounds: WorkerSettings) -> Verdict | None:
    """Say whether the child must go, and for whom. `now` is of the monotonic clock, as are the runs' times."""
    inside = [run for run in runs if run.phase is Phase.IN_CHILD]
    if not vitals.ready:
        if vitals.age <= bounds.start_seconds:
            return None
        return Verdict(Death(Cause.START, f"not ready after {bounds.start_seconds:g} s"), frozenset())
    if vitals.silence > bounds.alive_seconds:
        detail = f"no sign of life for {bounds.alive_seconds:g} s"
        if vitals.frozen:
            return Verdict(Death(Cause.OUTSIDE, f"{detail}: stopped from outside"), frozenset())
        return Verdict(Death(Cause.HANG, detail), frozenset(run.key for run in inside))
    overdue = [run for run in inside if run.cancel_at is not None and now - run.cancel_at > bounds.cancel_seconds]
    if overdue:
        detail = f"a cancel was not confirmed within {bounds.cancel_seconds:g} s"
        return Verdict(Death(Cause.HANG, detail), frozenset(run.key for run in overdue))
    stuck = [run for run in inside if now - run.moved_at > _patience(run, bounds)]
    if stuck:
        detail = f"no step for {_patience(stuck[0], bounds):g} s"
        return Verdict(Death(Cause.HANG, detail), frozenset(run.key for run in stuck))
    long = [run for run in inside if now - run.sent_at > bounds.max_run_seconds]
    if long:
        detail = f"a job took longer than {bounds.max_run_seconds:g} s"
        return Verdict(Death(Cause.HANG, detail), frozenset(run.key for run in long))
    return None


def _patience(run: Running, bounds: WorkerSettings) -> float:
    loads = not run.stepped or run.claim.job.request.kind == "compare"  # which loads a profile between steps, too
    return bounds.first_step_seconds if loads else bounds.stall_seconds
