"""What the supervisor and its device child tell each other. Knows neither how it travels nor what it leads to.

A job is named by id *and* owner token, because a supervisor that was frozen past its lease may take the same job again
while the child still ends the first run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.guard_record import Comparison
from jobs.job import Failure, JobResult
from jobs.request import AnyRequest


class Message(BaseModel):
    """Root of all messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobMessage(Message):
    """A message about one run of one job."""

    job_id: str
    token: str


# ---- to the child ---------------------------------------------------------------------------------------------------


class Run(JobMessage):
    """Make what is asked for and store it under `results_dir` (ResultStore names files by job id and token)."""

    type: Literal["run"] = "run"
    request: AnyRequest
    results_dir: Path
    queue_seconds: float = Field(0.0, description="Goes into the result's costs.")


class Cancel(JobMessage):
    """Stop this run at its next step; answered by Canceled, or by Finished or Failed when it was already over."""

    type: Literal["cancel"] = "cancel"


class Stop(Message):
    """Exit with status 0. Nothing runs any more, or what runs is not wanted."""

    type: Literal["stop"] = "stop"


# ---- from the child -------------------------------------------------------------------------------------------------


class Ready(Message):
    """The child takes jobs from now on. `profiles`: model id to the names of the profiles it can run."""

    type: Literal["ready"] = "ready"
    device: str = Field(description="As in the metrics' label, e.g. `cpu` or `cuda:0`.")
    profiles: dict[str, tuple[str, ...]]


class Started(JobMessage):
    """The job left the child's door and works: from now on the bounds on progress hold."""

    type: Literal["started"] = "started"


class Stepped(JobMessage):
    """`step` of `total` denoising steps are done. Sent at every step; the supervisor throttles."""

    type: Literal["stepped"] = "stepped"
    step: int
    total: int


class Working(JobMessage):
    """The job goes on without making steps: it decodes, encodes, or waits for others. Sent about every second."""

    type: Literal["working"] = "working"


class Previewed(JobMessage):
    """A small picture of how far the job is. `b64` is the encoded file in base64."""

    type: Literal["previewed"] = "previewed"
    index: int
    mime: str
    b64: str


class Finished(JobMessage):
    """The files are stored, synced and renamed; nothing is left to do but to settle."""

    type: Literal["finished"] = "finished"
    result: JobResult


class Failed(JobMessage):
    """The job failed in a way that leaves the child well. It stored no files."""

    type: Literal["failed"] = "failed"
    failure: Failure


class Canceled(JobMessage):
    """The job stopped because it was told to. It stored no files."""

    type: Literal["canceled"] = "canceled"


class BatchRan(Message):
    """One denoiser call: `rows` rows of `jobs` jobs in `seconds`; of `fallbacks` rows no table knew the timestep."""

    type: Literal["batch_ran"] = "batch_ran"
    model: str
    profile: str
    backend: str
    rows: int
    jobs: int
    seconds: float
    is_warmup: bool = False
    fallbacks: int = 0


class StageTook(Message):
    """One stage of one job took `seconds`."""

    type: Literal["stage_took"] = "stage_took"
    stage: Literal["load", "text_encode", "denoise", "vae_decode", "encode", "store"]
    seconds: float
    model: str
    profile: str
    backend: str
    is_warmup: bool = False


class Loaded(Message):
    """A profile became resident. `weights_bytes` are its denoiser's, of all compiled copies."""

    type: Literal["loaded"] = "loaded"
    model: str
    profile: str
    backend: str
    seconds: float
    weights_bytes: int


class Resized(Message):
    """A resident profile takes another amount of memory: copies of its weights are compiled as batch sizes come up."""

    type: Literal["resized"] = "resized"
    model: str
    profile: str
    weights_bytes: int


class Evicted(Message):
    """A profile left memory."""

    type: Literal["evicted"] = "evicted"
    model: str
    profile: str
    reason: str


SkipReason = Literal["full", "memory", "preempted", "failed"]
"""Why a sampled picture was not compared: no room to keep it, none to load float, a user needed that room, or the
comparison broke."""


class Compared(Message):
    """The guard compared a picture with float's."""

    type: Literal["compared"] = "compared"
    comparison: Comparison


class GuardSkipped(Message):
    """A sampled picture was not compared; `seconds` of the device were spent on trying."""

    type: Literal["guard_skipped"] = "guard_skipped"
    model: str
    profile: str
    reason: SkipReason
    seconds: float = 0.0


class Memory(Message):
    """The child's memory in bytes, as the operating system and the device see it."""

    type: Literal["memory"] = "memory"
    rss_bytes: int
    peak_bytes: int
    device_bytes: int = Field(0, description="Allocated on the device; 0 on a CPU.")


class Alive(Message):
    """The process is not frozen. Sent every second from a thread of its own; a job that hangs is known by its steps."""

    type: Literal["alive"] = "alive"


ToChild = Run | Cancel | Stop
OfJob = Started | Stepped | Working | Previewed | Finished | Failed | Canceled
FromChild = Ready | OfJob | BatchRan | StageTook | Loaded | Resized | Evicted | Memory | Alive | Compared | GuardSkipped
