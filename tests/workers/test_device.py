"""The device child as its supervisor meets it: a process at the other end of a channel, with real tiny models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from jobs.files import ResultStore
from jobs.job import new_job_id
from tests.workers.kit import TOKEN, request, tiny_settings
from workers.child import Cause, Child
from workers.messages import (
    Alive,
    BatchRan,
    Cancel,
    Canceled,
    Failed,
    Finished,
    FromChild,
    Loaded,
    Memory,
    Previewed,
    Ready,
    Run,
    Started,
    Stepped,
    Stop,
)

pytestmark = pytest.mark.anyio

M = TypeVar("M", bound=FromChild)


class Line:
    """A child, and all it said."""

    def __init__(self, child: Child, results: Path) -> None:
        self.child = child
        self.results = results
        self.heard: list[FromChild] = []

    async def hear(self, kind: type[M], fits: Callable[[M], bool] = lambda message: True) -> M:
        """The next message of a kind."""
        with anyio.fail_after(90):
            while True:
                message = await self.child.channel.receive()
                assert message is not None, "the child is gone"
                self.heard.append(message)
                if isinstance(message, kind) and fits(message):
                    return message

    def run(self, **changes: object) -> str:
        """Sends a job; its id."""
        job_id = new_job_id()
        wanted = request(**changes)  # type: ignore[arg-type]
        self.child.channel.send(
            Run(job_id=job_id, token=TOKEN, request=wanted, results_dir=self.results, queue_seconds=2)
        )
        return job_id


def libraries_of(pid: int) -> str:
    """The files that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_settings(tmp_path_factory.mktemp("device")).data


@asynccontextmanager
async def line_to(data: Path, monkeypatch: pytest.MonkeyPatch, *, null: bool) -> AsyncIterator[Line]:
    monkeypatch.setenv("HALFTONE_DATA", str(data))
    monkeypatch.setenv("HALFTONE_THREADS", "1")
    monkeypatch.setenv("HALFTONE_NULL_MODEL", str(null))
    child = await Child.start()
    try:
        yield Line(child, data / "results")
    finally:
        child.channel.send(Stop())
        with anyio.move_on_after(10) as scope:
            await child.wait()
        assert not scope.cancelled_caught, "the child did not stop"


async def test_a_real_model_from_run_to_finished(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with line_to(data, monkeypatch, null=False) as line:
        ready = await line.hear(Ready)
        assert ready.profiles["stable-diffusion"] == ("float",)
        job_id = line.run(previews=1)
        finished = await line.hear(Finished)
        assert (finished.job_id, finished.token) == (job_id, TOKEN)
        kinds = {type(message) for message in line.heard}
        assert kinds >= {Started, Loaded, Stepped, Previewed, BatchRan, Alive, Memory}
        assert finished.result.costs.queue_seconds == 2
        file = finished.result.files[0]
        path = ResultStore(line.results, 60).path_of(file.id)
        assert path.stat().st_size == file.size_bytes

        canceled = line.run(num_inference_steps=200)
        await line.hear(Stepped)
        line.child.channel.send(Cancel(job_id=canceled, token=TOKEN))
        assert (await line.hear(Canceled)).job_id == canceled

        failed = line.run(model="nowhere")
        answer = await line.hear(Failed)
        assert (answer.job_id, answer.failure.code) == (failed, "unknown_model")

        line.run(seed=4)
        assert (await line.hear(Finished)).result.costs.load_seconds < finished.result.costs.load_seconds


async def test_the_null_model_starts_fast_and_obeys(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with line_to(data, monkeypatch, null=True) as line:
        await line.hear(Ready)
        assert "torch" not in libraries_of(line.child.pid)
        line.run(model="null", prompt="a box", n=2)
        assert len((await line.hear(Finished)).result.files) == 2

        started = time.monotonic()
        sleeping = line.run(model="null", prompt="sleep 30")
        await line.hear(Started)
        line.child.channel.send(Cancel(job_id=sleeping, token=TOKEN))
        await line.hear(Canceled)
        assert time.monotonic() - started < 20

        line.run(model="null", prompt="crash")
        with anyio.fail_after(30):
            death = await line.child.wait()
        assert (death.cause, "status 3" in death.detail) == (Cause.CRASH, True)
