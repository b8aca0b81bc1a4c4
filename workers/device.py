"""The device child, `python -m workers.device --fd N`: takes jobs from its supervisor's channel, one thread each.

Imports torch only when a job needs it (at once, unless the benches' model is allowed). Must not know Redis.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from jobs.catalog import Catalog
from jobs.files import ResultStore
from jobs.job import JobResult
from jobs.request import CompareRequest
from workers import null
from workers.channel import ChildEnd
from workers.failures import failure_of
from workers.memory import peak_bytes, rss_bytes
from workers.messages import (
    Alive,
    Cancel,
    Canceled,
    Failed,
    Finished,
    FromChild,
    Memory,
    Previewed,
    Ready,
    Run,
    StageTook,
    Started,
    Stepped,
    Stop,
    Working,
)
from workers.settings import WorkerSettings
from workers.task import Assignment, JobCanceledSignal, Task

if TYPE_CHECKING:
    from workers.generate import Tools
    from workers.hub import Served
    from workers.seams import Stage

log = logging.getLogger(__name__)

ALIVE_SECONDS = 1.0
MEMORY_SECONDS = 5.0
SPINS = "1000"
"""How often OpenMP's threads look again before they sleep: a few microseconds. With libgomp's default, where anybody
else uses a core, each call waits for the thread that lost it: 7 s instead of 0.1 s, measured on two cores beside one
busy process. With none, waking costs more than computing: 31 ms a call instead of 19, measured on two idle cores."""

LOST_SUPERVISOR_STATUS = 1
BROKEN_STATUS = 70


class ChannelReporter:
    """Tells a job's news to the supervisor."""

    def __init__(self, device: Device, run: Run) -> None:
        self._device = device
        self._run = run

    def stepped(self, step: int, total: int) -> None:
        """`step` of `total` are done."""
        self._device.send(Stepped(job_id=self._run.job_id, token=self._run.token, step=step, total=total))

    def previewed(self, index: int, mime: str, b64: str) -> None:
        """A preview picture."""
        self._device.send(Previewed(job_id=self._run.job_id, token=self._run.token, index=index, mime=mime, b64=b64))

    def working(self) -> None:
        """The job lives, between steps."""
        self._device.send(Working(job_id=self._run.job_id, token=self._run.token))

    def stage_took(self, stage: Stage, seconds: float, served: Served) -> None:
        """A stage is over."""
        self._device.send(
            StageTook(
                stage=stage,
                seconds=seconds,
                model=served.model,
                profile=served.profile,
                backend=served.denoiser.backend,
            )
        )


class Device:
    """The child's loop and its threads."""

    def __init__(self, channel: ChildEnd, settings: WorkerSettings, catalog: Catalog) -> None:
        self._channel = channel
        self._settings = settings
        self._catalog = catalog
        self._tasks: dict[tuple[str, str], Task] = {}
        self._opening = threading.Lock()
        self._tools: Tools | None = None

    def serve(self) -> None:
        """Takes messages until told to stop, or until the supervisor is gone."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self.send(Ready(device=self._device_name(), profiles=self._profiles()))
        for message in self._channel:
            match message:
                case Run():
                    self._start(message)
                case Cancel():
                    self._cancel(message)
                case Stop():
                    return

    def send(self, message: FromChild) -> None:
        """Sends to the supervisor. Without one nothing here has a purpose: the process ends."""
        try:
            self._channel.send(message)
        except OSError as error:
            log.warning("the supervisor is gone: %s", error)
            leave(LOST_SUPERVISOR_STATUS)

    def _device_name(self) -> str:
        if self._settings.allow_null_model:
            return "cpu"  # the benches' child does not load torch to find out
        from workers.engine import device_name

        self._engine()
        return device_name()

    def _profiles(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(profile.name for profile in card.profiles) for name, card in self._catalog.models.items()}

    def _engine(self) -> Tools:
        from workers.engine import open_engine

        with self._opening:
            if self._tools is None:
                self._tools = open_engine(self._catalog, self._settings, self.send)
            return self._tools

    def _start(self, run: Run) -> None:
        task = Task(run.job_id, run.token, run.request.priority)
        self._tasks[run.job_id, run.token] = task
        threading.Thread(target=self._run, args=(task, run), name=f"job-{run.job_id[:8]}", daemon=True).start()

    def _cancel(self, message: Cancel) -> None:
        task = self._tasks.get((message.job_id, message.token))
        if task is not None:  # else it ended before it heard: its answer is on the way
            task.cancel()

    def _run(self, task: Task, run: Run) -> None:
        names = {"job_id": run.job_id, "token": run.token}
        self.send(Started(**names))
        try:
            answer: FromChild = Finished(**names, result=self._generate(task, run))
        except JobCanceledSignal:
            answer = Canceled(**names)
        except Exception as error:  # whatever it is, it ends this job only, and is told and logged
            log.exception("job %s failed", run.job_id)
            answer = Failed(**names, failure=failure_of(error))
        finally:
            if self._tools is not None:
                self._tools.hub.leave(task)
            del self._tasks[run.job_id, run.token]
        self.send(answer)

    def _generate(self, task: Task, run: Run) -> JobResult:
        store = ResultStore(run.results_dir, self._settings.result_ttl_seconds)
        assignment = Assignment(run.request, store, run.queue_seconds)
        if run.request.model == null.MODEL and self._settings.allow_null_model:
            return null.generate_null(task, assignment)
        tools = self._engine()
        if isinstance(run.request, CompareRequest):
            from workers.compare import compare

            return compare(task, assignment, tools, ChannelReporter(self, run))
        from workers.generate import generate

        return generate(task, assignment, tools, ChannelReporter(self, run))

    def _watch(self) -> None:
        """Sends signs of life for as long as the hub, where there is one, is not stuck in one thing."""
        remembered = 0.0
        while True:
            tools = self._tools
            if tools is None or tools.hub.stuck_seconds < self._settings.stall_seconds:
                self.send(Alive())
            if time.monotonic() - remembered >= MEMORY_SECONDS:
                remembered = time.monotonic()
                self.send(self._memory(tools))
            time.sleep(ALIVE_SECONDS)

    def _memory(self, tools: Tools | None) -> Memory:
        if tools is None:
            return Memory(rss_bytes=rss_bytes(), peak_bytes=peak_bytes())
        from workers.engine import device_bytes

        highest = max(tools.peaks.highest, peak_bytes())
        return Memory(rss_bytes=rss_bytes(), peak_bytes=highest, device_bytes=device_bytes())


def leave(status: int) -> NoReturn:
    """Ends the process at once: threads inside native code cannot be joined, and nothing here needs cleaning up."""
    logging.shutdown()
    os._exit(status)


def _broken(args: threading.ExceptHookArgs) -> None:
    """A thread of our own died of a bug: without it jobs would wait for ever."""
    log.critical("thread %s died", args.thread and args.thread.name, exc_info=args.exc_value)
    leave(BROKEN_STATUS)


def main() -> NoReturn:
    """Runs the child until its supervisor stops it."""
    parser = argparse.ArgumentParser(prog="python -m workers.device", description="A worker's device process.")
    parser.add_argument("--fd", type=int, required=True, help="the socket inherited from the supervisor")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s device %(name)s: %(message)s")
    threading.excepthook = _broken
    settings = WorkerSettings.load()
    device = Device(ChildEnd.from_fd(arguments.fd), settings, Catalog.scan(settings))
    device.serve()
    leave(0)


if __name__ == "__main__":
    main()
