"""`python -m bench switch`: what it costs to serve one request by one profile and the next by another.

As a worker does it: the same residents, under the same budget of bytes, load and evict artifacts. *Resident*: two
profiles in memory, calls in the order A A B B; a call after the other profile's is compared with one after its own, and
the lease is added. *Evicting*: a budget that holds one of the two, which take turns; what is accounted and what the
system counts is looked at all the while.
"""

from __future__ import annotations

import statistics
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bench import charts, numbers
from bench.cpu_cells import Size, built, packages, resolved
from bench.machine import describe
from bench.numbers import keep
from bench.rivals import OURS, Work
from bench.subjects import UNSEEN_SEED, Picture, subject
from bench.table import Found, Kept
from jobs.catalog import Catalog
from pipelines.denoiser import Denoiser, DenoiserCall
from pipelines.drawing import draw_batch
from pipelines.load import Components, quiet
from quant import Grow, read_manifest
from workers.hub import Hub, Served
from workers.loading import ModelLoader
from workers.memory import rss_bytes
from workers.residents import Departure, Event, Residents
from workers.settings import WorkerSettings
from workers.task import Task
from workers.turns import Turns

FULL: Final = Size(subjects=("sd15@32",), rivals=("tfmq-w8a8", "trdq-w8a8"), rounds=25)
QUICK: Final = Size(subjects=("small-unet@8",), rivals=("tfmq-w8a8", "tfmq-w4a8"), rounds=2)
AIM: Final = 0.01
"""Share of a picture's time that a switch between residents may cost."""

Pair = tuple[str, str]
"""Names of two profiles."""

LOOKS_SECONDS: Final = 0.002
EVICTIONS: Final = 4

HEAD = """# Switching profiles

Made by `python -m bench switch` on {processor}, {date}, {threads} threads. {first} and {second} of models of public
size with random weights, as a worker holds them.
"""


@dataclass
class Watch:
    """Most bytes seen: as residents account for them, of weights alive when a load ended, and of this process."""

    accounted: int = 0
    held: int = 0
    resident: int = 0
    looks: int = 0
    moves: list[str] = field(default_factory=list)


class _LastCall:
    """A denoiser that remembers the last call with both branches, and passes all on."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.last: DenoiserCall | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output."""
        self.last = call
        return self._denoiser.run(call)


def run(size: Size) -> None:
    """Measures and writes the table."""
    quiet()
    size = resolved(size)
    found = [measured(name, size) for name in size.subjects]
    facts: Found = {"machine": describe(), "packages": packages(), "threads": size.cores, "profiles": size.rivals}
    keep("switch", {**facts, "subjects": found}, markdown(facts, found))
    sets = [
        (one["subject"], {name: 1000 * one["resident"][name] for name in ("same_seconds", "switched_seconds")})
        for one in found
    ]
    charts.bars(sets, "ms a call", numbers.RESULTS / "switch.png")


def measured(name: str, size: Size) -> Found:
    """Both regimes for one model.

    Raises:
        ValueError: the subject is a layer, or the profiles are not two of ours.
    """
    about = subject(name, size.root)
    if not isinstance(about, Picture):
        raise ValueError(f"{name} is a layer: profiles are of models; name one with a size, such as sd15@32")
    if len(set(size.rivals)) != 2 or not set(size.rivals) <= set(OURS):
        raise ValueError(f"switching takes two of {', '.join(OURS)}, not {', '.join(size.rivals)}")
    about.prepare()
    for one in size.rivals:
        built(one, about, size, Kept(size.root))
    artifacts = [folder_of(about.work(one, size.cores)) for one in size.rivals]
    data, manifests = size.root / "switch" / about.name, [read_manifest(one) for one in artifacts]
    profiles = (manifests[0].profile, manifests[1].profile)
    lay_out(data, about, dict(zip(profiles, artifacts, strict=True)))
    with opened(data, 1 << 40, size) as (residents, _):
        resident = _resident(residents, about, profiles, size.rounds)
        both = residents.weights_bytes
    weights = resident["weights"]
    budget = both - min(loaded for loaded, _ in weights.values()) // 2
    with opened(data, budget, size) as (residents, watch):
        evicting = _evicting(residents, about, profiles, min(EVICTIONS, size.rounds))
    evicting |= {
        "budget": budget,
        "both": both,
        "accounted": watch.accounted,
        "held": watch.held,
        "rss_growth": watch.resident,
    }
    return {"subject": name, "resident": resident, "evicting": evicting | {"moves": watch.moves, "looks": watch.looks}}


def folder_of(work: Work) -> Path:
    """Where ours keeps its artifact."""
    return (work.home or work).folder


def lay_out(data: Path, about: Picture, artifacts: Mapping[str, Path]) -> None:
    """Makes a data folder as a worker's, in which the model and its artifacts are found by links."""
    links = {data / "models" / about.model: about.folder}
    links |= {data / "artifacts" / about.model / profile: folder for profile, folder in artifacts.items()}
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)


class _WatchedLoader(ModelLoader):
    """A worker's own loader; each time it is done, counts what all denoisers that are still alive weigh."""

    def __init__(self, watch: Watch, catalog: Catalog, settings: WorkerSettings, hub: Hub, turns: Turns) -> None:
        super().__init__(catalog, settings, hub, turns, "cpu")
        self._watch = watch
        self._alive: list[weakref.ref[Denoiser]] = []

    def denoiser(self, model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        """As the worker's."""
        served = super().denoiser(model, profile, components, grow, quick=quick)
        self._alive.append(weakref.ref(served.denoiser))
        weights = sum(one.weights_bytes for ref in self._alive if (one := ref()) is not None)
        self._watch.held = max(self._watch.held, components.weights_bytes + weights)
        return served


@contextmanager
def opened(data: Path, budget: int, size: Size) -> Iterator[tuple[Residents, Watch]]:
    """A worker's residents over a data folder, watched; profiles that came and went are noted."""
    watch = Watch()

    def tell(event: Event) -> None:
        name = event.profile if isinstance(event, Departure) else event.served.profile
        watch.moves.append(f"{type(event).__name__.lower()} of {name}")

    torch.set_num_threads(size.cores)
    settings = WorkerSettings(data=data, memory_budget_bytes=budget, threads=size.cores, redis_url=None)
    turns = Turns()
    hub = Hub(turns, lambda batch: None)
    residents = Residents(_WatchedLoader(watch, Catalog.scan(settings), settings, hub, turns), budget, tell)
    hub.start()
    done, base = threading.Event(), rss_bytes()
    watcher = threading.Thread(target=_look, args=(residents, watch, done, base), daemon=True)
    watcher.start()
    try:
        yield residents, watch
    finally:
        done.set()
        watcher.join()
        hub.stop()


def _look(residents: Residents, watch: Watch, done: threading.Event, base: int) -> None:
    while not done.wait(LOOKS_SECONDS):
        watch.accounted = max(watch.accounted, residents.weights_bytes)
        watch.resident = max(watch.resident, rss_bytes() - base)
        watch.looks += 1


def _resident(residents: Residents, about: Picture, profiles: Pair, rounds: int) -> Found:
    """Two profiles in memory: calls after a switch against calls after none."""
    calls: dict[str, DenoiserCall] = {}
    pictures: list[float] = []
    weights: dict[str, tuple[int, int]] = {}
    for profile in profiles:
        with residents.lease(about.model, profile, Task(profile)) as lease:
            loaded = lease.served.denoiser.weights_bytes
            recorder = _LastCall(lease.served.denoiser)
            for _ in range(2):  # the first is not counted
                drawn = draw_batch(lease.components, recorder, [about.unseen], [UNSEEN_SEED], about.defaults)
            pictures.append(drawn.seconds)
            if recorder.last is None:
                raise ValueError(f"{about.name}: its pipeline never calls its denoiser")
            calls[profile] = recorder.last
            weights[profile] = (loaded, lease.served.denoiser.weights_bytes)
    taken: dict[tuple[str, bool], list[float]] = {}
    leases: list[float] = []
    before = profiles[-1]
    for number in range(4 * rounds):
        profile = profiles[(number // 2) % 2]
        asked = time.perf_counter()
        with residents.lease(about.model, profile, Task(profile)) as lease:
            leases.append(time.perf_counter() - asked)
            started = time.perf_counter()
            lease.served.denoiser.run(calls[profile])
            taken.setdefault((profile, profile != before), []).append(time.perf_counter() - started)
        before = profile
    switched, same = (
        statistics.fmean(statistics.median(taken[profile, moved]) for profile in profiles) for moved in (True, False)
    )
    lease_seconds, picture = statistics.median(leases), min(pictures)
    cost = max(0.0, switched - same) + lease_seconds
    told: Found = {
        "weights": weights,
        "same_seconds": same,
        "switched_seconds": switched,
        "lease_seconds": lease_seconds,
    }
    return told | {"picture_seconds": picture, "cost_seconds": cost, "share": cost / picture, "calls": len(leases)}


def _evicting(residents: Residents, about: Picture, profiles: Pair, times: int) -> Found:
    """Profiles that take turns in a budget for one: seconds until each was there again."""
    seconds = []
    for number in range(2 * times):
        profile = profiles[number % 2]
        with residents.lease(about.model, profile, Task(profile)) as lease:
            seconds.append(lease.load_seconds)
    return {"first_seconds": seconds[:2], "switch_seconds": seconds[2:]}


def markdown(facts: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    machine, (first, second) = facts["machine"], facts["profiles"]
    told = {"processor": machine["processor"], "date": machine["date"], "threads": facts["threads"]}
    parts = [HEAD.format(**told, first=first, second=second)]
    for one in found:
        own, moved = one["resident"], one["evicting"]
        reached = "reached" if own["share"] <= AIM else "not reached"
        within = "reached" if max(moved["accounted"], moved["held"]) <= moved["budget"] else "not reached"
        parts += [
            f"## {one['subject']}",
            "",
            f"- Both resident, {own['calls']} calls: {1000 * own['same_seconds']:.1f} ms after a call of the same "
            f"profile, {1000 * own['switched_seconds']:.1f} ms after one of the other; a lease takes "
            f"{1e6 * own['lease_seconds']:.0f} µs. A switch costs {own['share']:.3%} of a picture of "
            f"{own['picture_seconds']:.2f} s (aim {AIM:.0%}): {reached}.",
            f"- Taking turns in {moved['budget'] / 1e6:.0f} MB, of which both would take {moved['both'] / 1e6:.0f}: "
            f"{statistics.median(moved['switch_seconds']):.2f} s a switch, warm-up and measuring of batches included; "
            f"at most {moved['accounted'] / 1e6:.0f} MB were accounted for in {moved['looks']} looks, and "
            f"{moved['held'] / 1e6:.0f} MB were in memory when a load ended (aim: within the budget): {within}. "
            f"The process grew by {moved['rss_growth'] / 1e6:.0f} MB at most.",
            *(
                f"- {profile}: weights of {loaded / 1e6:.0f} MB when it was loaded, which is what is accounted, and "
                f"{later / 1e6:.0f} MB after two pictures: every number of rows has a compiled copy."
                for profile, (loaded, later) in own["weights"].items()
            ),
            "",
        ]
    return "\n".join(parts)
