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
from quant import Grow
from quant.recipe_parts import FloatIn
from workers.hub import Served
from workers.residents import REFERENCE, Arrival, Departure, Event, Growth, NoRoom, Residents, TooLarge
from workers.task import JobCanceledSignal, Task


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Components]:
    yield load_components(save_tiny("stable-diffusion", tmp_path_factory.mktemp("tiny") / "tiny"))


@dataclass
class Heavy:
    """A denoiser of a given weight."""

    name: str
    weights_bytes: int
    grow: Grow
    backend: str = "torch"
    fallbacks: int = 0
    guidance: None = None
    precision: None = None
    decode_in: FloatIn = "float32"
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def run(self, call: DenoiserCall) -> Tensor:
        return torch.zeros_like(call.sample)

    def grow_by(self, more: int) -> bool:
        def take() -> None:
            self.weights_bytes += more

        return self.grow(self.weights_bytes, more, take)


@dataclass
class FakeLoader:
    """Shared parts weigh 10, denoisers 30. Notes what it loads."""

    real: Components
    loaded: list[str] = field(default_factory=list)
    fails: bool = False
    while_loading: tuple[int, ...] = ()
    grown: list[bool] = field(default_factory=list)
    heavy: dict[str, Heavy] = field(default_factory=dict)

    def estimate(self, model: str, profile: str | None) -> int:
        return 10 if profile is None else 30

    def components(self, model: str) -> Components:
        self.loaded.append(model)
        return replace(self.real, weights_bytes=10)

    def denoiser(self, model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        if self.fails:
            raise RuntimeError("broken weights")
        self.loaded.append(f"{model}/{profile}")
        heavy = self.heavy[f"{model}/{profile}"] = Heavy(profile, 30, grow)
        self.grown.append(all(heavy.grow_by(more) for more in self.while_loading))
        return Served(model, profile, heavy)


@dataclass
class Bench:
    loader: FakeLoader
    residents: Residents
    told: list[Event]

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
    told: list[Event] = []
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


def test_background_work_has_nothing_evicted_but_what_was_opened_to_be_looked_at(bench: Bench) -> None:
    bench.use("a/float", "a/w8a8", f"a/x{REFERENCE}")
    behind = Task("guard", background=True)
    with bench.residents.lease("a", f"y{REFERENCE}", behind):
        assert bench.gone == [f"a/x{REFERENCE}"]
        with pytest.raises(NoRoom), bench.residents.lease("a", "w4a8", behind):
            pass
    with bench.residents.lease("a", "w4a8", behind):
        assert bench.residents.profiles == [("a", "float"), ("a", "w8a8"), ("a", "w4a8")]
    with pytest.raises(NoRoom), bench.residents.lease("a", "w6a8", behind):
        pass
    assert len(bench.gone) == 2


def test_what_goes_lets_go_of_its_weights_whoever_still_knows_it(bench: Bench) -> None:
    bench.use("a/float", "a/w8a8", "a/w4a8", "a/x")
    assert {name: heavy.closed for name, heavy in bench.loader.heavy.items()} == {
        "a/float": True, "a/w8a8": False, "a/w4a8": False, "a/x": False
    }  # fmt: skip


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


def test_what_grows_takes_the_room_of_idle_ones(bench: Bench) -> None:
    bench.use("a/float", "b/float")
    with bench.residents.lease("b", "float", Task("job")):
        assert bench.loader.heavy["b/float"].grow_by(20)
        assert bench.gone == [], "100 is the budget"
        assert bench.loader.heavy["b/float"].grow_by(1)
        assert bench.gone == ["a/float"]
        assert bench.residents.weights_bytes == 71, "what is left of a fits"
    assert [event.served.denoiser.weights_bytes for event in bench.told if isinstance(event, Growth)] == [51, 51]


def test_what_grows_never_exceeds_the_budget_or_disturbs_busy_ones(bench: Bench) -> None:
    with bench.residents.lease("a", "float", Task("1")), bench.residents.lease("b", "float", Task("2")):
        assert not bench.loader.heavy["b/float"].grow_by(21)
        assert bench.loader.heavy["a/float"].grow_by(20)
        assert not bench.loader.heavy["b/float"].grow_by(1)
        assert bench.residents.weights_bytes == 100
    assert bench.gone == []


def test_what_grew_counts_for_the_next(bench: Bench) -> None:
    bench.use("a/float", "b/float")
    with bench.residents.lease("a", "float", Task("job")):
        assert bench.loader.heavy["a/float"].grow_by(20)
    bench.use("c/float")
    assert bench.gone == ["b/float"], "70 + 40 + 40 is more than 100"
    assert bench.residents.weights_bytes == 100


@pytest.mark.parametrize(
    ("more", "fits", "gone"),
    [((20,), True, []), ((30,), True, ["b/float"]), ((30, 30), True, ["b/float"]), ((30, 31), False, [])],
)
def test_room_is_asked_for_while_loading(bench: Bench, more: tuple[int, ...], fits: bool, gone: list[str]) -> None:
    bench.use("b/float")
    bench.loader.while_loading = more
    bench.use("a/float")
    assert bench.loader.grown == [True, fits]
    assert bench.gone == (gone if fits else ["b/float"])
    assert bench.residents.weights_bytes <= 100


def test_room_that_was_held_for_a_failed_load_is_free_again(bench: Bench) -> None:
    bench.loader.fails = True
    with pytest.raises(RuntimeError, match="broken"), bench.residents.lease("a", "float", Task("job")):
        pytest.fail("it cannot be loaded")
    bench.loader.fails = False
    with bench.residents.lease("b", "float", Task("job")):
        assert bench.loader.heavy["b/float"].grow_by(60)


def test_what_was_let_go_gets_no_room(bench: Bench) -> None:
    bench.use("a/float", "b/float", "c/float")
    assert bench.gone == ["a/float"]
    assert not bench.loader.heavy["a/float"].grow_by(1)
    bench.use("d/float")
    assert bench.residents.weights_bytes == 90, "nothing is held for it"


def test_what_takes_more_than_estimated_makes_room_before_it_is_there(bench: Bench) -> None:
    bench.use("b/float")
    seen: list[int] = []

    def heavy(model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        assert grow(0, 60, lambda: seen.append(bench.residents.weights_bytes)), "30 were estimated"
        return Served(model, profile, Heavy(profile, 60, grow))

    bench.loader.denoiser = heavy  # type: ignore[method-assign]
    bench.use("a/float")
    assert bench.gone == ["b/float"]
    assert seen == [20], "what is shared stays: b went before"
