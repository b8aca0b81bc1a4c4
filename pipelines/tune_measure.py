"""Measures what a recipe's search needs: what formats do to pictures, and what they take in bytes and in seconds.

Must not know how a choice is made of that, nor jobs or queues.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import quant
from jobs.profile import Defaults
from pipelines.calibrate import Progress, runner
from pipelines.families import Subject, UnsupportedModel
from pipelines.guidance import Planner, divided
from pipelines.influence import Influence, influences
from pipelines.load import Components
from pipelines.once import Once
from pipelines.quantized import Means, empty_denoiser
from pipelines.trials import Trials
from quant.errors import CalibrationError
from quant.layers import parts_of, quantizable_layers
from quant.nearest import input_error
from quant.recipe import Recipe, Sensitive
from quant.recipe_parts import Guidance
from quant.tuning.costs import LayerCosts, Measured, Offer, TableCosts, pooled, shares
from quant.tuning.effects import Direction, Effects, Meter, mean
from quant.tuning.formats import WAYS, WIDTHS, Way, way_bytes, weight_bytes
from quant.tuning.subject import Prepared, prepare

OFFERS = 8
"""Guidance plans that are chosen from, at most."""
TRIED: tuple[Way, ...] = ("static", "token", "float")
"""Ways to round inputs. A scale for each step and branch is no faster than one for each token, and less exact."""
DISTURBED_BITS = 4
"""Of the weights that influence is measured by."""
INFLUENCED = 2
"""Pictures that influence is measured on."""
PLANNED = 8
"""Pictures that are drawn together for guidance plans."""
TIMED_ROWS, TIMED_ROUNDS = 8, 7
"""Rows of a call whose time is taken, and how often: the least counts, as other processes only add to it."""


@dataclass(frozen=True)
class Bench:
    """What is measured by: a model, its float denoiser, subjects, settings, and what a backend may use."""

    components: Components
    denoiser: nn.Module
    subjects: Sequence[Subject]
    defaults: Defaults
    means: Means
    seed: int
    progress: Progress
    once: Once


def measure(bench: Bench, recipe: Recipe, probed: int) -> Measured:
    """Everything, of a float denoiser that is rotated in place as the recipe says.

    `probed` pictures are drawn with gradients.

    Raises:
        UnsupportedModel: pictures of the model cannot be probed.
        QuantError: a weight or input is not finite.
    """
    offers = bench.once.get("offers", tuple[Offer, ...], lambda: _offers(bench))
    run = runner(bench.components, bench.subjects, bench.defaults, seed=bench.seed, progress=bench.progress)
    rotation = quant.rotate_(bench.denoiser, run, recipe, seed=bench.seed)
    statistics = quant.calibrate_for(bench.denoiser, run, recipe, seed=bench.seed)
    bench.progress("rounding layers", 0, 1)
    prepared = prepare(bench.denoiser, recipe, statistics, TRIED)
    effects = bench.once.get("effects", Effects, lambda: _effects(bench, prepared, probed))
    seconds, other_bytes = bench.once.get(
        "times", tuple[dict[Way, float], int], lambda: _tried(bench, recipe, statistics, prepared, rotation)
    )
    return _together(bench, prepared, statistics, effects, offers, seconds, other_bytes)


def _offers(bench: Bench) -> tuple[Offer, ...]:
    """Guidance plans that can be had; none where the model runs one branch, or in an order that no plan serves."""
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        bench.progress("trying guidance plans", done, done + 1)

    settings = Guidance(method="plan", share_attention=False)
    fitted, checked = divided(bench.subjects, bench.seed)
    trials = Trials(bench.components, bench.denoiser, bench.defaults, batch=PLANNED, told=told)
    try:
        found = Planner(trials, bench.denoiser, settings, bench.defaults, fitted, checked).offers()
    except (UnsupportedModel, CalibrationError):
        return ()
    offers = [Offer(saving=saving, error=error) for saving, error in found if saving > 0 and error > 0]
    return tuple(offers[-1 :: -max(1, -(-len(offers) // OFFERS))])


def _effects(bench: Bench, prepared: Prepared, probed: int) -> Effects:
    influence = _influence(bench, prepared)
    meter = Meter(prepared.subject)
    guidance = bench.defaults.guidance_scale if influence.guided else None
    for number in range(probed):
        bench.progress("probing layers", number, probed)
        subject = bench.subjects[number % len(bench.subjects)]
        seed = bench.seed + number
        v = torch.randn(1, *influence.shape, generator=torch.Generator().manual_seed(seed))
        with meter.picture(Direction(v, influence.by_step, guidance, influence.size)) as answer:
            runner(bench.components, [subject], bench.defaults, seed=seed)(answer)
    bench.progress("probing layers", probed, probed)
    return mean(meter.effects)


def _influence(bench: Bench, prepared: Prepared) -> Influence:
    disturbed = copy.deepcopy(bench.denoiser)
    layers = quantizable_layers(disturbed)
    with torch.no_grad():
        for name, widths in prepared.subject.widths.items():
            layers[name].weight.copy_(widths[DISTURBED_BITS].weight)
    return influences(
        bench.components,
        bench.denoiser,
        disturbed,
        bench.subjects[:INFLUENCED],
        bench.defaults,
        seed=bench.seed,
        told=lambda done, total: bench.progress("probing steps", done, total),
    )


def _tried(
    bench: Bench,
    recipe: Recipe,
    statistics: quant.Statistics,
    prepared: Prepared,
    rotation: quant.RotationReport,
) -> tuple[dict[Way, float], int]:
    """Seconds of a row with all inputs rounded in each way, run by the backend; and the bytes that have no choice."""
    with TemporaryDirectory(prefix="halftone-tune-") as folder:
        runs: dict[Way, Callable[[], Tensor]] = {}
        sizes: dict[Way, int] = {}
        opened = []
        for place, way in enumerate(TRIED):
            bench.progress("taking times", place, len(TRIED) + 1)
            executable, sizes[way] = _built(bench, recipe, statistics, rotation, way, Path(folder) / way)
            opened.append(executable)
            first = statistics.calls[0]
            call = first.take(torch.zeros(TIMED_ROWS, dtype=torch.int64))
            runs[way] = lambda executable=executable, call=call: executable.run(call)  # type: ignore[misc]
        seconds = _least_seconds(runs)
        for executable in opened:
            executable.close()
    slots = len(statistics.schedule)
    known = sum(
        weight_bytes(layer, 8, prepared.parts[name]) + way_bytes("static", slots, prepared.parts[name])
        for name, layer in prepared.subject.layers.items()
    )
    tables = prepared.table_bytes.get(recipe.temporal.storage, 0)
    return {way: taken / TIMED_ROWS for way, taken in seconds.items()}, sizes["static"] - known - tables


def _built(
    bench: Bench,
    recipe: Recipe,
    statistics: quant.Statistics,
    rotation: quant.RotationReport,
    way: Way,
    folder: Path,
) -> tuple[quant.Executable, int]:
    """An artifact with every layer at 8 bits and its inputs rounded in one way, opened; and its bytes."""
    plain = {
        "rules": (),
        "sensitive": Sensitive(),
        "weights": recipe.weights.model_copy(update={"bits": 8, "range": "max"}),
    }
    uniform = recipe.model_copy(update={**plain, "activations": WAYS[way]})
    module = copy.deepcopy(bench.denoiser)
    made = quant.quantize_(module, uniform, statistics)
    about: Any = {"model": "tuned", "model_sha256": "0" * 64, "version": "0"}
    manifest = quant.save(folder, module, made, uniform, calibration={}, rotation=rotation, **about)
    options = quant.Options(bench.means.cache_dir, bench.means.cache_bytes, bench.means.threads)
    empty = lambda: empty_denoiser(bench.components)  # noqa: E731
    return quant.open_backend(manifest.backend, folder, manifest, empty, options), manifest.weights_bytes


def _least_seconds(runs: Mapping[Way, Callable[[], Tensor]]) -> dict[Way, float]:
    """Of each, run in turn."""
    least: dict[Way, float] = {}
    for number in range(1 + TIMED_ROUNDS):
        for way, run in runs.items():
            started = time.perf_counter()
            run()
            if number:  # the first one compiles
                least[way] = min(least.get(way, float("inf")), time.perf_counter() - started)
    return least


def _together(
    bench: Bench,
    prepared: Prepared,
    statistics: quant.Statistics,
    effects: Effects,
    offers: tuple[Offer, ...],
    seconds: Mapping[Way, float],
    other_bytes: int,
) -> Measured:
    least = min(seconds.values())
    layers, slots = prepared.subject.layers, len(statistics.schedule)
    read = {name: statistics.layers[name].inputs.total / statistics.rows for name in layers}
    work = {name: statistics.layers[name].macs / statistics.rows for name in layers}
    # what rounding takes goes with the numbers that are rounded; float products with multiply-adds
    by_way = {way: dict(shares(work if way == "float" else read)) for way in seconds}
    found = []
    for name, layer in layers.items():
        parts, subject = prepared.parts[name], prepared.subject
        local = {bits: rounded.error(layer.weight) for bits, rounded in subject.widths[name].items()}
        found.append(
            LayerCosts(
                name=prepared.names[name],
                float_bytes=4 * layer.weight.numel(),
                bytes={bits: weight_bytes(layer, bits, parts) for bits in WIDTHS},
                effect=pooled(effects.weights[name], local),
                way_bytes={way: way_bytes(way, slots, parts) for way in seconds},
                way_effect=_of_ways(name, prepared, statistics, effects.inputs[name]) | {"float": 0.0},
                way_seconds={way: (taken - least) * by_way[way][name] for way, taken in seconds.items()},
            )
        )
    return Measured(
        layers=tuple(found),
        tables=tuple(
            TableCosts(storage=storage, bytes=size, effect=effects.tables[storage])
            for storage, size in prepared.table_bytes.items()
        ),
        offers=offers,
        other_bytes=other_bytes,
        float_bytes=sum(4 * tensor.numel() for tensor in bench.denoiser.state_dict().values()),
        other_seconds=least,
        rows=_rows(bench, statistics),
        ways=tuple(seconds),
    )


def _rows(bench: Bench, statistics: quant.Statistics) -> int:
    """Rows that one picture's calls have."""
    return round(statistics.rows / len(bench.subjects))


def _of_ways(
    name: str, prepared: Prepared, statistics: quant.Statistics, effects: Mapping[str, float]
) -> dict[Way, float]:
    """Effects of ways to round inputs, pooled as widths are."""
    seen = statistics.layers[name]
    ways: list[Way] = [way for way in WAYS if way in effects]
    local = {}
    for place, way in enumerate(ways):
        parts = parts_of(prepared.subject.inputs[way][name])
        pairs = zip(parts, seen.parts or [seen], strict=True)
        local[place] = sum(input_error(part, one) * one.inputs.total for part, one in pairs)
    told = pooled({place: effects[way] for place, way in enumerate(ways)}, local)
    return {way: told[place] for place, way in enumerate(ways)}
