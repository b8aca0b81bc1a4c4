"""The main path of a comparison in the device child: draw by float and by each profile, compare, judge, store, report.

One picture after the other, each through the hub as any job's, so that it shares batches with users' jobs and waits for
theirs by its priority. Must not know the channel or the queue.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from jobs.comparing import COMPARE, CompareRequest
from jobs.job import JobResult, Used
from jobs.profile import FLOAT
from jobs.quality import Compared, Report, Scores, Settings, Shown, Summary, judge_picture
from jobs.request import Notice
from pipelines.comparison import Distance, scores_of
from pipelines.featured import StepKeeper
from pipelines.similarity import as_frames, difference
from workers.compare_draw import Drawer, Ledger, Measured
from workers.compare_report import Side, float_report, profile_report
from workers.compare_shelf import Shelf
from workers.compare_temporal import temporal_fidelity
from workers.generate import Tools
from workers.judges import Judges
from workers.seams import Reporter
from workers.task import Assignment, Task


@dataclass
class _Eyes:
    """What looks at pictures; None where it is not at hand, which `missing` tells by its reason."""

    judges: Judges
    between: Callable[[], None]
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lpips: Distance | None = self.judges.lpips(self.missing)
        self._clip = self.judges.clip(self.missing)

    def shown(self, picture: Tensor, prompt: str, seed: int, seconds: float, file: str, checker: Any) -> Shown:
        """A picture by itself."""
        return Shown(
            prompt=prompt,
            seed=seed,
            file=file,
            seconds=seconds,
            right=None if checker is None else checker(prompt, picture),
            clip_score=None if self._clip is None else statistics.fmean(self._clip_scores(self._clip, prompt, picture)),
        )

    def _clip_scores(self, clip: Callable[[str, Tensor], float], prompt: str, picture: Tensor) -> Iterator[float]:
        for frame in as_frames(picture):
            self.between()
            yield clip(prompt, frame)


def compare(task: Task, run: Assignment, tools: Tools, report: Reporter) -> JobResult:
    """Draws, compares and stores everything; the report is the last file.

    Raises:
        HalftoneError: a fault to be told to the user; nothing stays stored.
        JobCanceledSignal: the task was canceled; nothing stays stored.
    """
    request = run.request
    if not isinstance(request, CompareRequest):
        raise TypeError(f"a comparison was asked as {request.kind}")
    ledger = Ledger(request.pictures)
    shelf = Shelf(task, run, ledger, partial(_go_on, task, report))
    try:
        with tools.users.somebody():
            return _Comparison(run, request, Drawer(request, task, tools, report, ledger), shelf).result()
    except BaseException:
        shelf.clear()
        raise


def _go_on(task: Task, report: Reporter) -> None:
    """Called in long work between steps: says that it goes on, and ends it when canceled."""
    task.check()
    report.working()


class _Comparison:
    """One comparison at work."""

    def __init__(self, run: Assignment, request: CompareRequest, drawer: Drawer, shelf: Shelf) -> None:
        self._run = run
        self._request = request
        self._drawer = drawer
        self._task, self._tools = drawer.task, drawer.tools
        self._shelf = shelf
        self._between = partial(_go_on, drawer.task, drawer.report)
        self._eyes = _Eyes(drawer.tools.judges, self._between)
        self._steps = StepKeeper()
        self._float: Side[Shown] = Side(FLOAT)
        self._sides: dict[str, Side[Compared]] = {name: Side(name) for name in request.profiles}

    def result(self) -> JobResult:
        """Everything, done and stored."""
        request = self._request
        with self._tools.residents.lease(request.model, FLOAT, self._task) as lease:
            folder = lease.components.folder
        checker = self._tools.judges.checker(folder, self._eyes.missing)
        for prompt, seed in request.pairs:
            truth = self._one(prompt, seed, checker)
            for profile in request.profiles:
                self._other(profile, prompt, seed, truth, checker)
        found = self._report()
        self._shelf.put_report(found)
        return JobResult(
            files=tuple(self._shelf.files),
            used=self._used(found),
            costs=self._drawer.ledger.costs(self._run.queue_seconds, self._task.denoiser_calls),
            notices=found.notices,
            comparison=tuple(Summary.of(one) for one in found.profiles),
        )

    def _one(self, prompt: str, seed: int, checker: Any) -> Measured:
        """Float's picture."""
        first = not self._float.pictures and self._request.temporal
        watch = self._steps.watch if first else lambda call: None
        made = self._drawer.draw(FLOAT, prompt, seed, watch)
        picture = made.drawn.pictures[0]
        file = self._shelf.put(made)
        self._float.add(made, self._eyes.shown(picture, prompt, seed, made.seconds, file, checker))
        return made

    def _other(self, profile: str, prompt: str, seed: int, truth: Measured, checker: Any) -> None:
        """A profile's picture, and how far it is from float's."""
        made = self._drawer.draw(profile, prompt, seed)
        picture, wanted = made.drawn.pictures[0], truth.drawn.pictures[0]
        scores = scores_of(made.drawn, truth.drawn, self._eyes.lpips, self._between)
        self._between()
        file = self._shelf.put(made)
        apart, scale = difference(picture, wanted)
        other = self._shelf.put_difference(made, apart)
        shown = self._eyes.shown(picture, prompt, seed, made.seconds, file, checker)
        self._sides[profile].add(made, self._judged(shown, scores, other, scale))

    def _judged(self, shown: Shown, scores: Scores, other: str, scale: int) -> Compared:
        verdict, reasons = judge_picture(scores, self._request.thresholds)
        return Compared(
            **dict(shown),
            difference=other,
            difference_scale=scale,
            scores=scores,
            verdict=verdict,
            reasons=reasons,
        )

    def _report(self) -> Report:
        request, missing = self._request, self._eyes.missing
        temporal = {}
        if request.temporal:
            temporal = temporal_fidelity(request, list(self._steps.calls.values()), self._drawer)
            if not temporal:
                missing["temporal_features"] = "the model has no layers that follow the step alone"
        else:
            missing["temporal_features"] = "the request says temporal: false"
        reference = float_report(self._float)
        if "prompt_accuracy" not in missing and reference.prompt_accuracy is None:
            missing["prompt_accuracy"] = "the model's checker cannot read these prompts, or pictures of this size"
        if request.num_frames is None:
            missing["temporal_consistency"] = "of videos only"
        profiles = tuple(
            profile_report(side, reference, temporal.get(name), request.thresholds)
            for name, side in self._sides.items()
        )
        return Report(
            model=request.model,
            kind="image" if request.num_frames is None else "video",
            settings=self._settings(),
            thresholds=request.thresholds,
            reference=reference,
            profiles=profiles,
            not_measured=missing,
            notices=self._notices(),
        )

    def _settings(self) -> Settings:
        names = set(Settings.model_fields) - {"scheduler"}
        scheduler = self._float.made[0].used.scheduler
        return Settings(**{name: getattr(self._request, name) for name in names}, scheduler=scheduler)

    def _notices(self) -> tuple[Notice, ...]:
        """The request's own, and each of the pictures' once."""
        every = [*self._float.made, *(made for side in self._sides.values() for made in side.made)]
        told = [notice for made in every for notice in made.notices]
        return tuple({notice.message: notice for notice in (*self._request.notices, *told)}.values())

    def _used(self, found: Report) -> Used:
        request = self._request
        backends = dict.fromkeys([found.reference.backend, *(one.backend for one in found.profiles)])
        names = ("model", "seed", "num_inference_steps", "guidance_scale", "width", "height", "num_frames", "fps")
        facts = {name: getattr(request, name) for name in names}
        return Used(**facts, profile=COMPARE, backend="+".join(backends), scheduler=found.settings.scheduler)
