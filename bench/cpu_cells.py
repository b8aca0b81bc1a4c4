"""How much is measured, what measurements are kept under, and what is measured beside rivals. Must not know tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench import roofline
from bench.made import Layer
from bench.rivals import CPU, rival
from bench.rivals.ours import Ours, cache_of
from bench.rivals.process import Process
from bench.subjects import Subject
from bench.table import Found, Kept
from pipelines.skeletons import fake_weights
from quant.guidance.macs import multiply_adds

WORK: Final = Path("build/bench")
ANCHOR: Final = "tfmq-w8a8"
"""Runs in every heat."""

PACKAGES: Final = ("torch", "openvino", "nncf", "torchao", "optimum-quanto", "sdnq", "diffusers")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        subjects: models at sizes, and layers, by `bench.subjects`.
        rivals: by `bench.rivals`.
        rounds: calls of each rival that are timed, after `warm` that are not.
        pictures: whole pictures of each rival; 0 for none.
        at_once: rivals in memory together.
        threads: of each; 0 for all cores.
        root: where all that is made and measured is kept.
    """

    subjects: tuple[str, ...] = (
        "linear-1024x1152x1152", "linear-4096x1152x1152", "linear-1024x1152x4608", "linear-1024x4608x1152",
        "linear-4096x320x320", "linear-1024x640x5120", "conv-320x320x32", "conv-640x640x16", "conv-1280x1280x8",
        "sd15@32", "pixart@32", "sd15@64", "pixart@64",
    )  # fmt: skip
    rivals: tuple[str, ...] = tuple(CPU)
    rounds: int = 9
    warm: int = 2
    pictures: int = 3
    at_once: int = 7
    threads: int = 0
    root: Path = WORK

    @property
    def cores(self) -> int:
        """Threads of each rival."""
        return self.threads or len(os.sched_getaffinity(0))


FULL: Final = Size()
QUICK: Final = Size(
    subjects=("linear-64x32x48", "small-unet@8"),
    rivals=("torch-fp32", "openvino-bf16", "openvino-nncf-int8", ANCHOR),
    rounds=3,
    warm=1,
    pictures=1,
)
"""Shows in a minute that all of it works; its numbers say nothing."""


def resolved(size: Size) -> Size:
    """The same with an absolute root, since rivals' processes run elsewhere."""
    return replace(size, root=size.root.resolve())


def packages() -> dict[str, str]:
    """Versions of what rivals and ours are made of; "-" where it is not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def cell_name(bench: str, name: str, heat: Sequence[str], size: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """What a measurement is kept under: equal exactly where nothing that decides it differs."""
    deciding = {key: value for key, value in size.items() if key not in ("subjects", "rivals", "root", "at_once")}
    key = hashlib.sha256(repr((list(heat), sorted(deciding.items()), sorted(versions.items()))).encode()).hexdigest()
    return f"{bench}-{name}-{key[:16]}"


def built(name: str, about: Subject, size: Size, kept: Kept) -> float:
    """Has a rival make what it needs, in a process that then ends; the seconds that it took, when it did.

    Raises:
        RivalFailed: it could not.
    """
    if not rival(name).builds:
        return 0.0
    cell = cell_name("built", about.name, [name], {}, packages())
    done = kept.read(cell)
    # ours looks itself whether its recipe is another
    if done is None or isinstance(rival(name), Ours) or not rival(name).files(about.work(name, size.cores)):
        with Process(name, about.name, size.root, size.cores) as process:
            took = process.ask("build")["seconds"]
        done = done or {"seconds": took}
        kept.write(cell, done)
    return float(done["seconds"])


def counted_macs(about: Subject, kept: Kept) -> int:
    """Multiply-adds of one call, counted by shapes alone."""
    if isinstance(about, Layer):
        return about.multiply_adds()
    done = kept.read(f"macs-{about.name}")
    if done is None:
        module = fake_weights(about.work(ANCHOR, 1).empty())
        done = {"macs": multiply_adds(module, about.test()[0].call).total}
        kept.write(f"macs-{about.name}", done)
    return int(done["macs"])


def products_of(about: Subject, size: Size, kept: Kept, peak: float) -> Found | None:
    """What the integer products in ours reach of the peak; None where ours has not run at this size."""
    cell = cell_name("products", about.name, [ANCHOR], {"threads": size.cores}, packages())
    done = kept.read(cell)
    if done is None:
        sample = about.test()[0].call
        shape = list(next(sample.rows[name] for name in sample.rows if sample.role(name) == "sample").shape)
        work = about.work(ANCHOR, size.cores)
        graphs = sorted(cache_of(work.home or work).rglob("*.xml"))
        fitting = [graph for graph in graphs if roofline.takes(graph, shape[1:])]
        if not fitting:
            return None
        products = roofline.integer_products(fitting[0], shape, size.cores)
        done = {"each": [asdict(one) for one in products]}
        kept.write(cell, done)
    products = [roofline.Product(**one) for one in done["each"]]
    return {**roofline.shares(products, peak), "slowest": roofline.slowest(products, peak)}


def peaks_of(size: Size, kept: Kept) -> roofline.Peaks:
    """The machine's measured peaks."""
    cell = cell_name("peaks", "machine", [], {"threads": size.cores}, packages())
    done = kept.read(cell)
    if done is None:
        sides = roofline.SIDES if size.rounds > QUICK.rounds else (256,)
        best, tried = roofline.measured_peaks(size.cores, sides)
        done = {"best": best, "tried": dict(tried)}
        kept.write(cell, done)
    return dict(done["best"])
