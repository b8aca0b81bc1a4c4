"""One picture of a comparison, drawn through the hub like any job's and measured: seconds, memory, and its calls.

Must not know thresholds, reports or files.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from jobs.comparing import CompareRequest
from jobs.job import Costs, Used
from jobs.request import ImageRequest, Notice, VideoRequest
from pipelines.denoiser import DenoiserCall
from pipelines.drawing import Drawn, draw_watched
from pipelines.session import Session
from workers.generate import Tools, guidance_notices, order_of, truncation_notices, used_by
from workers.hub import Served
from workers.memory import rss_bytes
from workers.seams import JobSeams, Reporter, Stage, Stages
from workers.task import Task

Watch = Callable[[DenoiserCall], None]
"""Sees a call before it runs."""


@dataclass(frozen=True)
class Measured:
    """One picture of one profile. `seconds` without loading, each of its calls counted as the median of its shape."""

    drawn: Drawn
    asked: ImageRequest | VideoRequest
    used: Used
    weights_bytes: int
    seconds: float
    step_seconds: float
    peak_bytes: int
    activation_bytes: int
    notices: tuple[Notice, ...] = ()

    def without_pixels(self) -> Measured:
        """The same without pictures and latents, to keep while others are drawn."""
        return replace(self, drawn=Drawn(self.drawn.pictures[:0], [], self.drawn.seconds))


@dataclass
class Ledger:
    """What the whole comparison took so far, by stage, and how many of its pictures are drawn."""

    pictures: int
    drawn: int = 0
    peak_bytes: int = 0
    seconds: defaultdict[Stage, float] = field(default_factory=lambda: defaultdict(float))

    def costs(self, queue_seconds: float, denoiser_calls: int) -> Costs:
        """The costs of all."""
        return Costs(
            queue_seconds=queue_seconds,
            load_seconds=self.seconds["load"],
            text_encode_seconds=self.seconds["text_encode"],
            denoise_seconds=self.seconds["denoise"],
            decode_seconds=self.seconds["vae_decode"],
            encode_seconds=self.seconds["encode"],
            denoiser_calls=denoiser_calls,
            peak_bytes=self.peak_bytes,
        )


class _Part:
    """A picture's reporter: its steps are a part of all pictures' steps."""

    def __init__(self, report: Reporter, ledger: Ledger) -> None:
        self._report = report
        self._ledger = ledger

    def working(self) -> None:
        self._report.working()

    def stepped(self, step: int, total: int) -> None:
        self._report.stepped(self._ledger.drawn * total + step, self._ledger.pictures * total)

    def previewed(self, index: int, mime: str, b64: str) -> None:
        self._report.previewed(index, mime, b64)

    def stage_took(self, stage: Stage, seconds: float, served: Served) -> None:
        self._ledger.seconds[stage] += seconds
        self._report.stage_took(stage, seconds, served)


class _TimedSeams(JobSeams):
    """As a job's seams; takes the time of every call and shows it to who wants to see it."""

    def __init__(self, task: Task, tools: Tools, stages: Stages, watch: Watch) -> None:
        super().__init__(task, stages.lease.served, tools.hub, tools.turns, stages, previews=0)
        self._watch = watch
        self.calls: dict[tuple[int, int], list[float]] = {}

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Waits for the hub."""
        self._watch(call)
        started = time.perf_counter()
        output = super().denoise(call)
        self.calls.setdefault((call.rows, call.pattern), []).append(time.perf_counter() - started)
        return output

    def steady(self, seconds: float) -> float:
        """Seconds with each call counted as the median of its shape: a first one may compile."""
        each = self.calls.values()
        return seconds - sum(map(sum, each)) + sum(len(calls) * statistics.median(calls) for calls in each)

    @property
    def step_seconds(self) -> float:
        """The median call."""
        return statistics.median(seconds for calls in self.calls.values() for seconds in calls)


@dataclass(frozen=True)
class Drawer:
    """Draws the pictures of one comparison, one at a time, in whatever company."""

    request: CompareRequest
    task: Task
    tools: Tools
    report: Reporter
    ledger: Ledger

    def draw(self, profile: str, prompt: str, seed: int, watch: Watch = lambda call: None) -> Measured:
        """One picture by one profile. `watch` sees every denoiser call.

        Raises:
            HalftoneError: the picture cannot be drawn.
            JobCanceledSignal: the task was canceled.
        """
        request, ledger = self.request, self.ledger
        with self.tools.residents.lease(request.model, profile, self.task) as lease:
            stages = Stages(lease, _Part(self.report, ledger))
            seams = _TimedSeams(self.task, self.tools, stages, watch)
            asked = picture_of(request, profile, prompt, seed)
            denoiser = lease.served.denoiser
            session = Session(lease.components, order_of(asked), seams, denoiser.guidance, denoiser.decode_in)
            with self.tools.peaks.watch() as peak:
                before = rss_bytes()
                drawn = draw_watched(session, [seed])
                highest = self.tools.peaks.read(peak)
            ledger.drawn += 1
            ledger.peak_bytes = max(ledger.peak_bytes, highest)
            notices = (
                *truncation_notices(session.pipeline, asked, self.tools.turns),
                *guidance_notices(asked, denoiser.guidance, session.plan_unused),
            )
            return Measured(
                drawn=drawn,
                asked=asked,
                used=used_by(asked, lease, session.plan_unused),
                weights_bytes=lease.served.denoiser.weights_bytes,
                seconds=seams.steady(drawn.seconds),
                step_seconds=seams.step_seconds,
                peak_bytes=highest,
                activation_bytes=max(0, highest - before),
                notices=notices,
            )


def picture_of(request: CompareRequest, profile: str, prompt: str, seed: int) -> ImageRequest | VideoRequest:
    """One picture or video of a comparison, as a request of its own."""
    names = ("model", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "priority")
    facts = {name: getattr(request, name) for name in names}
    facts |= {"profile": profile, "prompt": prompt, "seed": seed, "output_format": request.output_format}
    if request.num_frames is None:
        return ImageRequest.model_validate(facts)
    return VideoRequest.model_validate(facts | {"num_frames": request.num_frames, "fps": request.fps})
