"""What is in memory and what goes: parts of a tiny model that claim to weigh what the test likes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from pipelines.denoiser import DenoiserCall
from pipelines.load import Components, load_components
from pipelines.tiny import save_tiny
from workers.hub import Served
from workers.residents import Arrival, Departure, Residents, TooLarge
from workers.task import JobCanceledSignal, Task


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Components]:
    yield load_components(save_tiny("stable-diffusion", tmp_path_factory.mktemp("tiny") / "tiny"))


@dataclass
class Heavy:
    """A denoiser of a given weight."""

    name: str
    weights_bytes: int
    backend: str = "torch"
    fallbacks: int = 0
    guidance: None = None

    def run(self, call: DenoiserCall) -> Tensor:
        return torch.zeros_like(call.sample)


@dataclass
class FakeLoader:
    """Shared parts weigh 10, denoisers 30. Notes what it loads."""

    real: Components
    loaded: list[str] = field(default_factory=list)
    fails: bool = False

    def estimate(self, model: str, profile: str | None) -> int:
        return 10 if profile is None else 30

    def components(self, model: str) -> Components:
        self.loaded.append(model)
        return replace(self.real, weights_bytes=10)

    def denoiser(self, model: str, profile: str, components: Components) -> Served:
        if self.fails:
            raise RuntimeError("broken weights")
        self.loaded.append(f"{model}/{profile}")
        return Served(model, profile, Heavy(profile, 30))


@dataclass
class Bench:
    loader: FakeLoader
    residents: Residents
    told: list[Arrival | Departure]

    def use(self, *names: str) -> None:
        for name in names:
            model, profile = name.split("/")
            with self.residents.lease(model, profile, Task("job")):
                pass

    @property
    def gone(self) -> list[str]:
        return [f"{event.model}/{event.profile}" for event in self.told if isinstance(event, Departure)]


@pytest.fixture
def bench(real: Components) -> Bench:
    told: list[Arrival | Departure] = []
    loader = FakeLoader(real)
    return Bench(loader, Residents(loader, 100, told.append), told)


def test_profiles_share_what_a_model_has_once(bench: Bench) -> None:
    bench.use("a/float", "a/w8a8", "a/float")
    assert bench.loader.loaded == ["a", "a/float", "a/w8a8"]
    assert bench.residents.weights_bytes == 70
    assert [event.served.profile for event in bench.told if isinstance(event, Arrival)] == ["float", "w8a8"]


def test_the_least_recently_used_goes_first(bench: Bench) -> None:
    bench.use("a/float", "a/w8a8", "a/float", "b/float")
    assert bench.gone == ["a/w8a8"]
    assert bench.residents.profiles == [("a", "float"), ("b", "float")]
    bench.use("c/float")
    assert bench.gone == ["a/w8a8", "a/float"]
    assert bench.residents.weights_bytes == 90, "what is left of a fits"
    bench.use("d/float")
    assert bench.gone == ["a/w8a8", "a/float", "b/float"]
    assert bench.residents.weights_bytes == 90, "a is gone, b's shared parts fit beside c and d"


def test_a_busy_one_never_goes_and_the_next_waits_for_it(bench: Bench) -> None:
    entered = threading.Event()

    def third() -> None:
        with bench.residents.lease("c", "float", Task("third")):
            entered.set()

    with ExitStack() as held:
        held.enter_context(bench.residents.lease("a", "float", Task("first")))
        with bench.residents.lease("b", "float", Task("second")):
            waiter = threading.Thread(target=third)
            waiter.start()
            assert not entered.wait(0.5)
            assert bench.gone == []
        assert entered.wait(10)
        waiter.join()
        assert bench.gone == ["b/float"]


def test_a_job_that_waits_for_room_can_be_canceled(bench: Bench) -> None:
    task = Task("waits")
    with bench.residents.lease("a", "float", Task("1")), bench.residents.lease("b", "float", Task("2")):
        threading.Timer(0.2, task.cancel).start()
        with pytest.raises(JobCanceledSignal), bench.residents.lease("c", "float", task):
            pytest.fail("there was no room")
    bench.use("c/float")
    assert ("c", "float") in bench.residents.profiles


def test_what_can_never_fit_is_told_at_once(real: Components) -> None:
    residents = Residents(FakeLoader(real), 35, lambda event: None)
    with pytest.raises(TooLarge, match="HALFTONE_MEMORY_BUDGET_BYTES"), residents.lease("a", "float", Task("job")):
        pytest.fail("35 is less than 40")


def test_a_failed_load_holds_nothing(bench: Bench) -> None:
    bench.loader.fails = True
    with pytest.raises(RuntimeError, match="broken"), bench.residents.lease("a", "float", Task("job")):
        pytest.fail("it cannot be loaded")
    bench.loader.fails = False
    bench.use("b/float", "c/float", "a/float")
    assert bench.residents.weights_bytes <= 100


def test_many_leases_at_once_load_once(bench: Bench) -> None:
    threads = [threading.Thread(target=bench.use, args=("a/float",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bench.loader.loaded == ["a", "a/float"]
