"""`python -m bench guard`: damaged artifacts that the quality guard must find, healthy ones that it must leave alone.

Comparisons are made as the worker's guard makes them, without a queue and eight pictures at a time, and judged by the
records that serve. Every case is written when it is done; a killed run goes on there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import quant
from bench import guard_report
from bench.guard_sabotage import SABOTAGES, CannotDamage, damage
from bench.machine import describe
from jobs.guard_record import GuardRecord, Verdict, after, comparison, empty
from jobs.manifest import Manifest
from jobs.profile import ProfileCard
from jobs.spread import Spread, temporal_excess
from pipelines.drawing import draw_batch
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.probe import Probed
from pipelines.quantized import load_profile
from pipelines.spreading import compared, temporal_errors
from workers.guard import LATER_RECHECKS, RECHECKS
from zoo.build import (
    CALIBRATION_PROMPTS,
    LEARNING_PROMPTS,
    ZOO,
    Means,
    Model,
    card_of,
    model_defaults,
    open_model,
    summary_of,
)
from zoo.worlds import world_of

SKIPPED = 256
"""Unseen prompts that builds are measured on; traffic begins after them."""

MEASURED = 64
"""Of them, those that the builds made here are measured on."""

BATCH = 8
TRAFFIC_SEED = 50_000


@dataclass(frozen=True)
class Case:
    """An artifact to be judged: `wanted` is what the guard should say of it."""

    name: str
    artifact: Path
    comparisons: int
    wanted: Verdict
    hit: str = ""


def judged(model: Model, case: Case, cache: Path) -> dict[str, Any]:
    """What the guard says of a case, comparison by comparison, until it is failed or there are enough."""
    card = Manifest.read(case.artifact / "manifest.json").card(case.artifact)
    spread = None if card.fidelity is None else card.fidelity.spread
    if spread is None:
        raise SystemExit(f"{case.artifact} has no spread: run python -m zoo.build --spread")
    record, started = empty(card.model, card.name, card.build, 0.0), time.monotonic()
    for record in stream(model, card, spread, case, cache):
        if record.verdict is Verdict.FAILED:
            break
    return {
        "case": case.name,
        "hit": case.hit,
        "wanted": case.wanted.value,
        "verdict": record.verdict.value,
        "comparisons": record.comparisons,
        "detectors": record.detectors._asdict(),
        "reason": record.reason,
        "psnr_db": record.psnr_db.mean,
        "build_psnr_db": card.fidelity.psnr_db if card.fidelity else None,
        "seconds": time.monotonic() - started,
    }


def stream(model: Model, card: ProfileCard, spread: Spread, case: Case, cache: Path) -> Iterator[GuardRecord]:
    """The record after each comparison."""
    components, defaults = model.components, model_defaults(model.components.folder)
    denoiser = load_profile(card, components, Means(cache, 1))
    prompts = [task.prompt for task in world_of(defaults).asked(SKIPPED + case.comparisons)][SKIPPED:]
    excesses = rechecks(model, card, spread, denoiser)
    record = empty(card.model, card.name, card.build, 0.0)
    found = compared(components, model.truth, denoiser, prompts, defaults, seed=TRAFFIC_SEED, batch=BATCH)
    for number, measured in enumerate(found):
        due = number < RECHECKS or number % LATER_RECHECKS == 0
        excess = excesses[number % len(excesses)] if due else None
        one = comparison(card, spread.setting, f"{case.name}-{number}", spread.setting, measured, excess, 0.0)
        record = after(record, one, float(number))
        yield record


def rechecks(model: Model, card: ProfileCard, spread: Spread, denoiser: Any) -> list[float]:
    """How far each of the build's pictures, or its temporal features, exceeds what the build measured."""
    components, defaults = model.components, model_defaults(model.components.folder)
    probe = Probed(model.truth, {denoiser.name: denoiser}, len(spread.anchors))
    prompts, seeds = [one.prompt for one in spread.anchors], [one.seed for one in spread.anchors]
    draw_batch(components, probe, prompts, seeds, defaults)
    features = temporal_excess(temporal_errors(components, card, prompts[0], defaults), spread.temporal_error)
    errors = probe.errors[denoiser.name].errors.tolist()
    return [max(anchor.excess(row), features) for anchor, row in zip(spread.anchors, errors, strict=True)]


def sabotages(folder: Path, model: str, profiles: Sequence[str], seeds: int) -> Iterator[Case]:
    """Five kinds of damage to each profile, each at several places."""
    for profile in profiles:
        for kind in SABOTAGES:
            for seed in range(seeds):
                name = f"{profile}/{kind}-{seed}"
                target = folder / name / profile
                try:
                    hit = damage(ZOO / "artifacts" / model / profile, target, kind, seed)
                except CannotDamage as fault:
                    print(json.dumps({"case": name, "left_out": str(fault)}))
                    continue
                yield Case(name, target, 20, Verdict.FAILED, hit)


def shipped(model: str, profiles: Sequence[str], comparisons: int) -> Iterator[Case]:
    """The artifacts as they ship."""
    for profile in profiles:
        yield Case(f"{profile}/shipped", ZOO / "artifacts" / model / profile, comparisons, Verdict.HEALTHY)


def builds(folder: Path, opened: Model, name: str, recipe_name: str, most: int, comparisons: int) -> Iterator[Case]:
    """Builds by a recipe, each calibrated on prompts of its own and measured on others."""
    recipe = quant.load_recipe(recipe_name)
    for number in range(most):
        out = folder / f"build-{number}" / recipe_name
        if not (out / quant.MANIFEST).exists():
            source = opened.components.folder
            defaults = model_defaults(source)
            count = LEARNING_PROMPTS if recipe.learns else CALIBRATION_PROMPTS
            prompts = world_of(defaults).captions(count, 100 + number)
            quantize_folder(QuantizationOrder(source, out, recipe, prompts, defaults, name))
        if quant.read_manifest(out).fidelity is None:
            quant.set_fidelity(out, summary_of(opened, card_of(out), Means(folder / "cache", 1), MEASURED))
        yield Case(f"{recipe_name}/build-{number}", out, comparisons, Verdict.HEALTHY)


def _options(choice: argparse.Namespace) -> str:
    """What makes these cases again, anywhere."""
    numbers = (f"--{name} {getattr(choice, name)}" for name in ("seeds", "builds", "recipe", "comparisons"))
    return " ".join([f"--model {choice.model} --profiles", *choice.profiles, *numbers])


def main(arguments: Sequence[str]) -> int:
    """Judge all cases; 1 when one was judged otherwise than wanted."""
    options = argparse.ArgumentParser(prog="python -m bench guard", description=__doc__)
    options.add_argument("--model", default="shapes-unet")
    options.add_argument("--profiles", nargs="*", default=["tfmq-w8a8"], help="shipped profiles, damaged and whole")
    options.add_argument("--seeds", type=int, default=1, help="places for each kind of damage")
    options.add_argument("--builds", type=int, default=10, help="healthy builds to be made")
    options.add_argument("--recipe", default="w8a8", help="what they are made by")
    options.add_argument("--comparisons", type=int, default=200, help="for each healthy artifact")
    options.add_argument("--out", type=Path, default=Path("build/guard"), help="folder of artifacts and results")
    options.add_argument("--report", type=Path, default=Path("docs/results"), help="folder of the table")
    choice = options.parse_args(arguments)
    out = choice.out / choice.model
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    opened = open_model(choice.model)
    cases = []
    for case in chain(  # made one by one, as they are judged
        sabotages(out / "damaged", choice.model, choice.profiles, choice.seeds),
        shipped(choice.model, choice.profiles, choice.comparisons),
        builds(out / "builds", opened, choice.model, choice.recipe, choice.builds, choice.comparisons),
    ):
        file = results / f"{case.name.replace('/', '-')}-of-{case.comparisons}.json"
        if not file.exists():
            file.write_text(json.dumps(judged(opened, case, out / "cache"), indent=1), encoding="utf-8")
        told = json.loads(file.read_text(encoding="utf-8"))
        cases.append(told)
        print(json.dumps(told), flush=True)
    about = {"options": _options(choice), "model": choice.model}
    place = describe()
    guard_report.write(choice.report, about | {name: place[name] for name in ("processor", "date")}, cases)
    wrong = sum(told["verdict"] != told["wanted"] for told in cases)
    print(json.dumps({"cases": len(cases), "judged_otherwise": wrong}))
    return int(wrong > 0)
