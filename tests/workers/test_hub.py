"""The hub's scheduling: who runs with whom, who goes first, who gets whose error. The denoiser is a gate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.request import Priority
from pipelines.denoiser import DenoiserCall
from quant.recipe_parts import FloatIn
from workers.hub import Batch, Hub, Served
from workers.task import JobCanceledSignal, Task
from workers.tickets import Order, Ticket
from workers.turns import Turns

POISON = -666.0


class Gate:
    """A denoiser that waits for a permit before each call, doubles samples, and chokes on poison."""

    name, backend, weights_bytes, fallbacks, guidance, precision = "gate", "torch", 0, 0, None, None
    decode_in: FloatIn = "float32"

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.seen: list[list[float]] = []

    def run(self, call: DenoiserCall) -> Tensor:
        self.seen.append(call.sample[:, 0].tolist())
        self.entered.release()
        if not self.permits.acquire(timeout=20):
            raise TimeoutError("no permit")
        if bool((call.sample == POISON).any()):
            raise ValueError("poison")
        self.fallbacks += int((call.timestep > 0).sum())
        return call.sample * 2


def call(value: float, rows: int = 1, width: int = 3, time: int = 0) -> DenoiserCall:
    zeros = torch.zeros(rows, dtype=torch.int64)
    return DenoiserCall(torch.full((rows, width), value), zeros + time, zeros, zeros + 4, zeros)


class Bench:
    """A hub, a gate, and callers on threads."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.hub = Hub(Turns(), self.batches.append)
        self.gate = Gate()
        self.served = Served("m", "p", self.gate)
        self.answers: dict[float, Any] = {}
        self.threads: list[threading.Thread] = []
        self.hub.start()

    def set_limit(self, rows: int, width: int = 3) -> None:
        """Makes the limit of a width known, as if measured."""
        from pipelines.batch import group_key

        limit = self.hub._limits.of(("m", "p", group_key(call(0.0, 1, width))))
        limit.rows, limit.settled = rows, True

    def set_seconds(self, seconds: float, width: int) -> None:
        """Makes known what a call of a width takes, as if one had run."""
        from pipelines.batch import group_key

        self.hub._limits.of(("m", "p", group_key(call(0.0, 1, width)))).seconds = seconds

    def ask(self, value: float, task: Task | None = None, **shape: int) -> Task:
        """Calls on a thread of its own and returns once the hub has the call."""
        asker = task or Task(f"job-{value}")

        def run() -> None:
            try:
                self.answers[value] = self.hub.run(asker, self.served, call(value, **shape))
            except (ValueError, JobCanceledSignal) as error:
                self.answers[value] = error

        before = len(self.hub._waiting)
        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.hub._waiting) > before or value in flat(self.gate.seen))
        return asker

    def block(self) -> None:
        """Fills the device with a call, so that the next ones pile up."""
        self.ask(0.0, width=7)
        assert self.gate.entered.acquire(timeout=10)

    def finish(self, permits: int = 50) -> None:
        self.gate.permits.release(permits)
        for thread in self.threads:
            thread.join(timeout=20)
            assert not thread.is_alive()


def flat(lists: list[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.gate.permits.release(100)
    made.hub.stop()


def test_a_batch_tells_of_rows_that_no_table_knew(bench: Bench) -> None:
    bench.set_limit(16)
    bench.block()
    for time_of_row in (0, 5, 7):
        bench.ask(1.0, rows=2, time=time_of_row)
    bench.finish()
    assert [batch.fallbacks for batch in bench.batches] == [0, 4]


def test_waiting_calls_of_one_shape_run_as_one(bench: Bench) -> None:
    bench.set_limit(16)
    bench.block()
    for value in (1.0, 2.0, 3.0):
        bench.ask(value, rows=2)
    bench.ask(9.0, width=5)
    bench.finish()
    assert bench.gate.seen[1:] == [[1.0, 1.0, 2.0, 2.0, 3.0, 3.0], [9.0]]
    assert [(batch.rows, batch.jobs) for batch in bench.batches] == [(1, 1), (6, 3), (1, 1)]
    assert {value: answer.tolist()[0][0] for value, answer in bench.answers.items()} == {
        0.0: 0.0, 1.0: 2.0, 2.0: 4.0, 3.0: 6.0, 9.0: 18.0,
    }  # fmt: skip


def test_a_job_that_waits_for_others_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.hub.WAITING_SECONDS", 0.01)
    said = threading.Semaphore(0)
    bench.block()
    asking = (Task("waits"), bench.served, call(1.0, width=4), said.release)
    bench.threads.append(threading.Thread(target=bench.hub.run, args=asking))
    bench.threads[-1].start()
    assert all(said.acquire(timeout=10) for _ in range(3))
    bench.finish()


def test_no_batch_exceeds_the_measured_limit(bench: Bench) -> None:
    bench.set_limit(4)
    bench.block()
    for value in (1.0, 2.0, 3.0):
        bench.ask(value, rows=2)
    bench.finish()
    assert [len(rows) for rows in bench.gate.seen[1:]] == [4, 2]


def test_higher_priority_goes_first_and_age_decides_among_equals(bench: Bench) -> None:
    bench.block()
    bench.ask(1.0, Task("low", priority=Priority.LOW), width=4)
    bench.ask(2.0, Task("normal", priority=Priority.NORMAL), width=5)
    bench.ask(3.0, Task("later", priority=Priority.NORMAL), width=6)
    bench.ask(4.0, Task("high", priority=Priority.HIGH), width=8)
    bench.finish()
    assert flat(bench.gate.seen[1:]) == [4.0, 2.0, 3.0, 1.0]


def test_waiting_raises_a_low_priority(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tickets.AGEING_SECONDS", 0.02)
    bench.block()
    bench.ask(1.0, Task("low", priority=Priority.LOW), width=4)
    time.sleep(0.1)
    bench.ask(2.0, Task("high", priority=Priority.HIGH), width=5)
    bench.finish()
    assert flat(bench.gate.seen[1:]) == [1.0, 2.0]


def test_a_new_job_takes_its_first_step_within_two_calls(bench: Bench) -> None:
    """Four jobs of other shapes keep the device busy; the fifth must not wait for a round of all of them."""
    stop = threading.Event()

    def work(width: int) -> None:
        task = Task(f"busy-{width}")
        while not stop.is_set():
            bench.hub.run(task, bench.served, call(float(width), width=width))

    for width in (10, 11, 12, 13):
        bench.threads.append(threading.Thread(target=work, args=(width,)))
        bench.threads[-1].start()
    bench.gate.permits.release(20)
    wait_until(lambda: len(bench.gate.seen) == 21)
    seen = len(bench.gate.seen)
    bench.ask(1.0, width=4)
    stop.set()
    bench.finish()
    assert 1.0 in flat(bench.gate.seen[seen : seen + 2])


PICTURE, VIDEOS = 4, (21, 22, 23)


@pytest.fixture
def busy(bench: Bench) -> Bench:
    """A bench where a call of a picture takes 10 ms, and those of three videos, of other shapes each, 300 ms."""
    bench.set_seconds(0.01, PICTURE)
    for width in VIDEOS:
        bench.set_seconds(0.3, width)
    return bench


def film(width: int) -> Task:
    """A video's job that is under way."""
    task = Task(f"video-{width}")
    task.denoiser_calls = 7
    return task


def test_a_picture_waits_for_one_call_of_a_video_not_for_one_of_each(busy: Bench) -> None:
    picture = Task("picture")
    picture.denoiser_calls = 3
    busy.block()
    for width in VIDEOS:
        busy.ask(float(width), film(width), width=width)
    busy.ask(1.0, picture, width=PICTURE)
    assert flat(busy.gate.seen) == [0.0]
    busy.gate.permits.release()
    assert busy.gate.entered.acquire(timeout=10)
    assert flat(busy.gate.seen[1:]) == [1.0], "although the videos came first"
    busy.finish()
    assert flat(busy.gate.seen[2:]) == [21.0, 22.0, 23.0], "the oldest of them first"


def test_a_video_waits_a_moment_for_the_next_call_of_a_picture(busy: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is away between two calls, while its scheduler steps; a video's call of seconds must not slip in."""
    monkeypatch.setattr("workers.tickets.PATIENCE_SECONDS", 5.0)  # a moment, on a busy machine
    monkeypatch.setattr("workers.tickets.PATIENCE_SHARE", 100.0)

    def work() -> None:
        picture = Task("picture")
        for _ in range(10):
            busy.hub.run(picture, busy.served, call(1.0, width=PICTURE))
            time.sleep(0.002)
        busy.hub.leave(picture)

    def run(given: DenoiserCall) -> Tensor:
        time.sleep(0.001 if given.sample.shape[1] == PICTURE else 0.3)
        busy.gate.seen.append(given.sample[:, 0].tolist())
        return given.sample

    monkeypatch.setattr(busy.gate, "run", run)
    videos = [film(width) for width in VIDEOS]
    stop = threading.Event()

    def show(task: Task, width: int) -> None:
        while not stop.is_set():
            busy.hub.run(task, busy.served, call(float(width), width=width))

    for task, width in zip(videos, VIDEOS, strict=True):
        busy.threads.append(threading.Thread(target=show, args=(task, width)))
    busy.threads.append(threading.Thread(target=work))
    for thread in busy.threads:
        thread.start()
    busy.threads[-1].join(30)
    stop.set()
    busy.finish()
    seen = flat(busy.gate.seen)
    calls = [index for index, value in enumerate(seen) if value == 1.0]
    between = [b - a - 1 for a, b in pairwise(calls)]
    assert max(between) <= 1 and sum(between) <= 4, seen
    shares = [seen.count(float(width)) for width in VIDEOS]
    assert max(shares) - min(shares) <= 1, "videos take turns"


def test_pictures_do_not_starve_a_video(busy: Bench) -> None:
    order = Order(lambda key: {"light": 0.5, "heavy": 2.0}[str(key)])
    video, picture = film(21), Task("picture")
    picture.denoiser_calls = 3
    waiting = [ticket(video, "heavy", born=0.0), ticket(picture, "light", born=1.0)]
    ran = []
    for _ in range(12):
        first, left = order.sorted(waiting, 1.5)
        ran.append(str(first.key))
        order.ran(first, [left], {"light": 0.5, "heavy": 2.0}[str(first.key)])
        first.overtaken = 0.0  # its next call is a new ticket
    assert ran == (["light"] * 4 + ["heavy"]) * 2 + ["light"] * 2, "half of the time each"


def test_a_lower_priority_overtakes_nobody(busy: Bench) -> None:
    order = Order(lambda key: {"light": 0.01, "heavy": 2.0}[str(key)])
    video, low = film(21), Task("picture", priority=Priority.LOW)
    waiting = [ticket(video, "heavy", born=1.0), ticket(low, "light", born=1.0)]
    assert [one.task for one in order.sorted(waiting, 1.5)] == [video, low]


def ticket(task: Task, key: str, born: float) -> Ticket:
    return Ticket(task, Served("m", "p", Gate()), call(0.0), key, born)


def test_an_error_reaches_only_the_job_that_earned_it(bench: Bench) -> None:
    bench.set_limit(16)
    bench.block()
    for value in (1.0, POISON, 3.0):
        bench.ask(value)
    bench.finish()
    assert len(bench.gate.seen[1]) == 3
    assert isinstance(bench.answers[POISON], ValueError)
    assert (bench.answers[1.0][0, 0].item(), bench.answers[3.0][0, 0].item()) == (2.0, 6.0)


def test_cancel_ends_a_waiting_and_a_running_call_at_once(bench: Bench) -> None:
    bench.block()
    running, waiting = Task("running"), Task("waiting")
    bench.gate.permits.release()
    bench.ask(1.0, running, width=4)
    assert bench.gate.entered.acquire(timeout=10)
    bench.ask(2.0, waiting, width=5)
    running.cancel()
    waiting.cancel()
    wait_until(lambda: {1.0, 2.0} <= set(bench.answers))  # the gate is still shut
    assert all(isinstance(bench.answers[value], JobCanceledSignal) for value in (1.0, 2.0))
    bench.finish()
    assert 2.0 not in flat(bench.gate.seen)


def test_jobs_in_lock_step_stay_together(bench: Bench) -> None:
    bench.set_limit(16)

    def work(value: float) -> None:
        task = Task(f"job-{value}")
        for _ in range(10):
            bench.hub.run(task, bench.served, call(value))
        bench.hub.leave(task)

    bench.block()
    for value in (1.0, 2.0, 3.0):
        bench.threads.append(threading.Thread(target=work, args=(value,)))
        bench.threads[-1].start()
    wait_until(lambda: len(bench.hub._waiting) == 3)
    bench.finish()
    together = [rows for rows in bench.gate.seen if len(rows) > 1]
    assert sum(len(rows) for rows in together) >= 20, bench.gate.seen


def test_a_dead_hub_is_seen(bench: Bench) -> None:
    assert bench.hub.stuck_seconds < 5
    bench.hub.stop()
    assert bench.hub.stuck_seconds == float("inf")
