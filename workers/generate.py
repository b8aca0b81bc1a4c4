"""The main path of one job in the device child: lease, draw, encode, store. Must not know the channel or the queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.job import JobResult, Used
from jobs.request import GenerationRequest, ImageRequest, Notice, VideoRequest
from pipelines.families import UnsupportedModel, tokenizers
from pipelines.session import Order, Session
from quant.guidance.plan import GuidancePlan
from workers.hub import Hub
from workers.judges import Judges
from workers.memory import PeakMeter
from workers.presence import Presence
from workers.products import products_of
from workers.residents import Lease, Residents
from workers.seams import JobSeams, Reporter, Stages
from workers.storing import store
from workers.task import Assignment, Drawn, Task
from workers.turns import Turns

if TYPE_CHECKING:
    from workers.guard import Guard


@dataclass(frozen=True)
class Tools:
    """What all jobs of a child share."""

    residents: Residents
    hub: Hub
    turns: Turns
    peaks: PeakMeter
    judges: Judges = field(default_factory=Judges)
    users: Presence = field(default_factory=Presence)
    guard: Guard | None = None


def generate(task: Task, run: Assignment, tools: Tools, report: Reporter) -> JobResult:
    """Makes the request's pictures, or its video, and stores them.

    Raises:
        HalftoneError: a fault to be told to the user; nothing stays stored.
        JobCanceledSignal: the task was canceled; nothing stays stored.
    """
    request = run.request
    if not isinstance(request, ImageRequest | VideoRequest):
        raise UnsupportedModel(f"this worker makes pictures and videos; the job is of kind {request.kind!r}")
    with (
        tools.users.somebody(),
        tools.peaks.watch() as peak,
        tools.residents.lease(request.model, request.profile, task) as lease,
    ):
        stages = Stages(lease, report)
        seams = JobSeams(task, lease.served, tools.hub, tools.turns, stages, request.previews)
        plan = lease.served.denoiser.guidance
        order = order_of(request)
        session = Session(lease.components, order, seams, plan, lease.served.denoiser.decode_in)
        made = session.draw()
        notices = (
            *request.notices,
            *truncation_notices(session.pipeline, request, tools.turns),
            *guidance_notices(request, plan, session.plan_unused),
        )
        used = used_by(request, lease, session.plan_unused)
        files = store(task, run, products_of(request, made, used, seams.alive), stages)
        costs = stages.costs(run.queue_seconds, task.denoiser_calls, tools.peaks.read(peak))
    if tools.guard is not None:
        tools.guard.offer(task.job_id, request, order, made, session.latents)
    return JobResult(files=files, used=used, costs=costs, notices=notices)


def order_of(request: Drawn) -> Order:
    """The request as pipelines know it."""
    moving = request if isinstance(request, VideoRequest) else None
    return Order(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        steps=request.num_inference_steps,
        guidance=request.guidance_scale,
        seeds=request.seeds,
        frames=None if moving is None else moving.num_frames,
        fps=None if moving is None else moving.fps,
    )


def used_by(request: Drawn, lease: Lease, plan_unused: str | None) -> Used:
    """What the request was really run with."""
    plan, moving = lease.served.denoiser.guidance, request if isinstance(request, VideoRequest) else None
    return Used(
        model=request.model,
        profile=request.profile,
        backend=lease.served.denoiser.backend,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        scheduler=lease.components.scheduler_name,
        num_frames=None if moving is None else moving.num_frames,
        fps=None if moving is None else moving.fps,
        guidance_saving=None if plan is None else 0.0 if plan_unused else plan.saving,
    )


def guidance_notices(request: GenerationRequest, plan: GuidancePlan | None, unused: str | None) -> Iterator[Notice]:
    """A notice where a profile's guidance plan did not serve the request, or served what it was not calibrated with."""
    if unused is not None:
        message = f"profile {request.profile} ran guidance in full, without its plan: {unused}"
        yield Notice(code="guidance_plan_unused", message=message)
    elif plan is not None and request.negative_prompt:
        message = f"profile {request.profile} leaves out parts of guidance, calibrated without a negative prompt"
        yield Notice(code="guidance_plan_negative_prompt", message=message)


def truncation_notices(pipeline: Any, request: GenerationRequest, turns: Turns) -> Iterator[Notice]:
    """One notice per text of which no tokenizer of the pipeline sees all."""
    for field_name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        with turns.take():  # tokenizers are not thread-safe
            lengths = [
                (len(tokenizer(text, truncation=False, verbose=False).input_ids), limit)
                for tokenizer, limit in tokenizers(pipeline)
            ]
        if lengths and all(length > limit for length, limit in lengths):
            length, limit = max(lengths, key=lambda pair: pair[1])
            message = f"{field_name} has {length} tokens and the model reads the first {limit}; the rest had no effect"
            yield Notice(code="prompt_truncated", message=message)
