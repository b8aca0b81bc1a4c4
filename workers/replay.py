"""A finished picture drawn again in float, and single answers of its profile beside float's on the way.

Every piece of work (a denoiser call, a text encoding, the decoding of one picture) waits until no user's job is here:
one that comes waits for one piece at most. Must not know what the numbers mean, nor where they go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from torch import Tensor

import quant
from jobs.profile import FLOAT
from jobs.request import GenerationRequest
from jobs.spread import EQUAL_DB, Measured, Spread, temporal_excess
from pipelines.denoiser import DenoiserCall, TorchDenoiser
from pipelines.featured import Featured, StepKeeper
from pipelines.load import Components
from pipelines.probe import CallErrors
from pipelines.session import Exclusive, Order, Session
from pipelines.similarity import psnr
from workers.hub import Hub, Served
from workers.presence import Presence
from workers.residents import Residents
from workers.task import Task
from workers.turns import Turns

LOOK_SECONDS = 0.2
"""Longest sleep between two looks at whether a user waits for memory."""

QUIET_SECONDS = 0.05
"""How long nobody must have been here: between two jobs of one client is no pause to fill."""


class Preempted(Exception):
    """A user's job needs the memory that the replay holds."""


@dataclass(frozen=True)
class Sample:
    """One picture of a finished job, as it left the pipeline."""

    id: str
    request: GenerationRequest
    order: Order
    picture: Tensor
    latent: Tensor | None

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.picture.nbytes + (0 if self.latent is None else self.latent.nbytes)


@dataclass
class Gate:
    """Lets one piece of background work through at a time, whenever nobody else is here; counts its seconds."""

    users: Presence
    residents: Residents
    turns: Turns
    task: Task
    seconds: float = 0.0

    def wait(self) -> None:
        """Returns once nobody is here.

        Raises:
            Preempted: somebody waits for the memory that is held meanwhile.
            JobCanceledSignal: the task was canceled.
        """
        while not self.users.wait_alone(LOOK_SECONDS, QUIET_SECONDS):
            self.task.check()
            if self.residents.pressed:
                raise Preempted("memory")
        self.task.check()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the block's seconds."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - started

    @contextmanager
    def piece(self) -> Iterator[None]:
        """The device's turn, once nobody is here."""
        self.wait()
        with self.turns.take(), self.timed():
            yield


class Finished(Exception):
    """The last step is done and nothing that follows is of interest."""


@dataclass
class ReplaySeams:
    """Answers a session's seams by float; has the profile answer each call too, and notes how far it is off."""

    gate: Gate
    hub: Hub
    truth: Served
    own: Served
    decodes: bool = True
    errors: CallErrors = field(default_factory=lambda: CallErrors(1))
    steps: StepKeeper = field(default_factory=StepKeeper)

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Float's answer; the profile's is compared with it and dropped."""
        truth = self._run(self.truth, call)
        self.errors.add(call, truth, self._run(self.own, replace(call, pattern=0)))
        if not self.decodes:
            self.steps.watch(call)
        return truth

    def _run(self, served: Served, call: DenoiserCall) -> Tensor:
        self.gate.wait()
        with self.gate.timed():
            return self.hub.run(self.gate.task, served, call)

    @contextmanager
    def alone(self, stage: Exclusive) -> Iterator[None]:
        """The device's turn, once nobody is here."""
        with self.gate.piece():
            yield

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        """Nobody watches; ends the session at its last step where nothing is to be decoded."""
        if step >= total and not self.decodes:
            raise Finished


def replayed(sample: Sample, components: Components, seams: ReplaySeams) -> Measured:
    """The sample beside float's picture of the same seed and noise."""
    session = Session(components, sample.order, seams)
    picture = session.draw()[0]
    latent = 0.0
    if sample.latent is not None and session.latents is not None:
        latent = quant.relative_error(sample.latent, session.latents[0].float().cpu())
    return Measured(min(psnr(sample.picture, picture), EQUAL_DB), latent, tuple(seams.errors.errors[0].tolist()))


def anchored(spread: Spread, number: int, components: Components, seams: ReplaySeams) -> float:
    """How far the calls' errors of one of the build's pictures exceed those that its build met; 1 is allowed."""
    anchor = spread.anchors[number % len(spread.anchors)]
    order = Order(
        prompt=anchor.prompt,
        negative_prompt="",
        width=spread.width,
        height=spread.height,
        steps=spread.num_inference_steps,
        guidance=spread.guidance_scale,
        seeds=[anchor.seed],
        frames=spread.num_frames,
        fps=spread.fps,
    )
    with suppress(Finished):
        Session(components, order, seams).draw()
    return anchor.excess(seams.errors.errors[0].tolist())


def features_excess(own: Featured, spread: Spread, seams: ReplaySeams) -> float:
    """How far the artifact's temporal features are off float's, beyond what its build measured; 1 is allowed.

    `seams` has answered the calls of one picture: a row of each step's is what features are taken at.
    """
    names, denoiser = tuple(spread.temporal_error), seams.truth.denoiser
    if not isinstance(denoiser, TorchDenoiser):
        raise TypeError(f"float was opened as {type(denoiser).__name__}")
    truth, own = Featured(FLOAT, denoiser.module, names), own.of(names)
    found: dict[str, list[float]] = {name: [] for name in names}
    for call in seams.steps.calls.values():
        with seams.gate.piece():
            wanted = truth.by_name(truth.run(call))
        with seams.gate.piece():
            given = own.by_name(own.run(call))
        for name in names:
            found[name] += quant.relative_errors(given[name], wanted[name]).tolist()
    return temporal_excess(found, spread.temporal_error)
