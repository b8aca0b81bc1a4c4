"""When a child is given up, and for whom: a table of times."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from jobs.comparing import CompareRequest
from jobs.job import Job, JobState
from jobs.queue import JobQueue
from jobs.records import Claim
from jobs.request import ImageRequest
from workers.child import Cause
from workers.running import Phase, Reports, Running
from workers.settings import WorkerSettings
from workers.watchdog import Vitals, judge

NOW = 10_000.0
WELL = Vitals(age=5000, silence=0.5, ready=True, frozen=False)


def run(**times: object) -> Running:
    """A run of a job in the child, sent and last moved 10 s ago unless told otherwise."""
    request = ImageRequest(
        model="m", profile="float", prompt="p", width=8, height=8, num_inference_steps=1, guidance_scale=0, seed=0
    )
    claim = Claim(Job(id="a" * 32, request=request, state=JobState.RUNNING, created_at=0), "b" * 16)
    made = Running(claim, Reports(cast("JobQueue", None), claim), moved_at=NOW - 10, sent_at=NOW - 10)
    made.phase = Phase.IN_CHILD
    for name, value in times.items():
        setattr(made, name, value)
    return made


def comparing(**times: object) -> Running:
    """The run of a comparison."""
    made = run(**times)
    request = CompareRequest.model_validate(
        made.claim.job.request.model_dump(include={"model", "width", "height", "num_inference_steps", "guidance_scale"})
        | {"profiles": ("w8a8",), "prompts": ("p",), "seeds": (0,)}
    )
    made.claim = Claim(made.claim.job.model_copy(update={"request": request}), made.claim.token)
    return made


@pytest.mark.parametrize(
    ("vitals", "held", "cause", "guilty"),
    [
        (WELL, run(), None, False),
        (Vitals(age=299, silence=299, ready=False, frozen=False), run(), None, False),
        (Vitals(age=301, silence=1, ready=False, frozen=False), run(), Cause.START, False),
        (Vitals(age=400, silence=31, ready=True, frozen=False), run(), Cause.HANG, True),
        (Vitals(age=400, silence=31, ready=True, frozen=True), run(), Cause.OUTSIDE, False),
        (WELL, run(moved_at=NOW - 299), None, False),
        (WELL, run(moved_at=NOW - 301), Cause.HANG, True),
        (WELL, run(moved_at=NOW - 119, stepped=True), None, False),
        (WELL, run(moved_at=NOW - 121, stepped=True), Cause.HANG, True),
        (WELL, comparing(moved_at=NOW - 299, stepped=True), None, False),  # it may load another profile
        (WELL, comparing(moved_at=NOW - 301, stepped=True), Cause.HANG, True),
        (WELL, run(moved_at=NOW - 9999, phase=Phase.SETTLING), None, False),
        (WELL, run(cancel_at=NOW - 14), None, False),
        (WELL, run(cancel_at=NOW - 16), Cause.HANG, True),
        (WELL, run(sent_at=NOW - 1801, stepped=True), Cause.HANG, True),
    ],
)
def test_who_is_given_up(vitals: Vitals, held: Running, cause: Cause | None, guilty: bool, tmp_path: Path) -> None:
    neighbour = run(claim=Claim(held.claim.job.model_copy(update={"id": "c" * 32}), "d" * 16))
    verdict = judge(vitals, [held, neighbour], NOW, WorkerSettings(data=tmp_path))
    assert (verdict and verdict.death.cause) == cause
    if verdict is not None:
        assert (held.key in verdict.culprits) == guilty
        silent = vitals.silence > 30 and not vitals.frozen
        assert (neighbour.key in verdict.culprits) == silent, "only silence makes everyone suspect"
