"""Searches a model's recipe under a promise of fidelity: measured once, chosen, built, drawn, corrected until it holds.

Must not know queues, HTTP, or what a prompt means.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import quant
from jobs.profile import FLOAT
from pipelines.beside import Remembered
from pipelines.calibrate import Progress, silent
from pipelines.denoiser import Denoiser, TorchDenoiser
from pipelines.families import Subject
from pipelines.features import temporal_features
from pipelines.fidelity import ProfileFidelity, evaluate
from pipelines.load import Components, load_components, load_denoiser
from pipelines.once import Once, digest
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import denoiser_sha256
from pipelines.tune_facts import facts_of, opened
from pipelines.tune_measure import Bench, measure
from pipelines.tune_order import (
    FORMAT,
    MOST_OF_FLOAT,
    Kept,
    OutOfReach,
    Round,
    Spot,
    Story,
    Tuned,
    TuneOrder,
    base_recipe,
    decibels,
    learned_rounding,
    shortfall,
)
from quant.recipe import Recipe
from quant.recipe_parts import Guidance, Rounding
from quant.recipe_text import text_of
from quant.replacing import replacing
from quant.tuning.costs import Choice, Measured, Search
from quant.tuning.formats import tuned

ROUNDS = 6
"""Recipes that are built and drawn, at most."""

LEARNED_ROUNDS = 3
"""More, where rounding is learned: each takes as long as an artifact."""

LEARNING_DB = 3.0
"""PSNR that learning is expected to be worth, before the first recipe that learned tells."""

CLOSE_DB = 0.75
"""So much more than promised is near enough: a cheaper recipe is looked for otherwise."""

MARGIN_DB = 0.3
"""More than promised is aimed at: the next pictures are others."""

USUAL_DB = 18.0
"""PSNR of pictures whose latents are wrong by all of their size, before the first picture tells."""

RECIPE, STORY = "recipe.toml", "tuning.json"
"""Beside the artifact's own files: the recipe that makes it again, and how it was found."""


def tune_folder(order: TuneOrder, progress: Progress = silent) -> Tuned:
    """Finds a recipe, leaves its artifact at `order.out` with its fidelity on held-out subjects, and tells how.

    What is finished lies in `order.work`, and is taken up by the next call of the same order.

    Raises:
        OutOfReach: no recipe keeps the promise.
        UnsupportedModel: the model cannot be loaded, or its pictures cannot be probed.
        QuantError: a weight or input is not finite.
        ValueError: there is no subject of some kind.
    """
    if not (order.subjects and order.checked and order.held_out):
        raise ValueError("tuning needs subjects to measure on, others to check on, and others to hold the result to")
    progress("reading", 0, 1)
    return _Tuner(order, load_components(order.folder), progress).tune()


@dataclass
class _Tuner:
    order: TuneOrder
    components: Components
    progress: Progress
    offset: float = USUAL_DB
    rounds: list[Round] = field(default_factory=list)
    places: set[Path] = field(default_factory=set)
    float_bytes: int = 0
    truth: Remembered | None = None
    rounding: Rounding = field(default_factory=Rounding)
    most: int = ROUNDS

    def __post_init__(self) -> None:
        self.once = Once(self.order.work, self._facts())

    def tune(self) -> Tuned:
        """The whole search."""
        measured = self.once.get("measured", Measured, self._measure)
        self.float_bytes = measured.float_bytes
        search = Search(measured, self.order.objective)
        aim, held = self.order.min_psnr_db + MARGIN_DB, None
        known: list[Kept] = []
        if self.order.learned_on:
            known.append(self._near(search, aim, ()))
            self._begin_to_learn()
        while held is None:
            _, recipe, place = self._near(search, aim, known)
            found = self._compared(place, self.order.held_out, 1 + len(self.order.checked))
            reached = decibels(found)
            if reached >= self.order.min_psnr_db:
                held = found
            elif len(self.rounds) >= self.most:
                raise self._out_of_reach(reached)
            else:
                aim, known = aim + MARGIN_DB + self.order.min_psnr_db - reached, []
        return self._finished(search, recipe, place, held)

    def _begin_to_learn(self) -> None:
        self.rounding = learned_rounding()
        self.offset += LEARNING_DB
        self.most = len(self.rounds) + LEARNED_ROUNDS

    def _near(self, search: Search, aim: float, known: Sequence[Kept]) -> Kept:
        """The cheapest recipe of a few whose pictures keep the promise, as those that are checked show; or of `known`.

        Raises:
            OutOfReach: none does.
        """
        kept = list(known)
        seen: set[str] = set()
        while True:
            choice, finest = self._chosen(search, aim)
            recipe = self._recipe(choice)
            if repr(recipe) in seen or (len(self.rounds) >= self.most and kept):
                break
            seen.add(repr(recipe))
            place, psnr = self._drawn(choice, recipe)
            if psnr >= self.order.min_psnr_db and self._saves(place):
                kept.append(Kept(search.cost(choice), recipe, place))
                if psnr <= aim + CLOSE_DB:
                    break
            elif finest or len(self.rounds) >= self.most:
                break
        if not kept:
            raise self._out_of_reach()
        return min(kept, key=lambda one: one.cost)

    def _saves(self, place: Path) -> bool:
        """Whether an artifact is much smaller than float."""
        manifest = quant.read_manifest(place)
        return manifest.weights_bytes <= MOST_OF_FLOAT * manifest.float_weights_bytes

    def _out_of_reach(self, held_out: float | None = None) -> OutOfReach:
        self._clear()
        return OutOfReach(shortfall(self.order.min_psnr_db, self.rounds, self.float_bytes, held_out))

    def _chosen(self, search: Search, aim: float) -> tuple[Choice, bool]:
        """The choice that is expected to reach an aim, and whether nothing finer is left."""
        choice = search.best(10 ** ((self.offset - aim) / 10))
        if choice is not None:
            return choice, False
        finest = search.best(search.least_error * (1 + 1e-9))
        assert finest is not None
        return finest, True

    def _recipe(self, choice: Choice) -> Recipe:
        order, base = self.order, base_recipe()
        told = f"found by tuning for {order.objective} at {order.min_psnr_db:g} dB"
        storage = choice.storage or base.temporal.storage
        plan = Guidance() if choice.offer is None else Guidance(method="plan", budget=min(1.0, choice.offer.error))
        temporal = base.temporal.model_copy(update={"storage": storage})
        changes = {"temporal": temporal, "guidance": plan, "rounding": self.rounding}
        return tuned(base.model_copy(update=changes), order.out.name, told, choice.formats)

    def _drawn(self, choice: Choice, recipe: Recipe) -> tuple[Path, float]:
        """Builds a recipe, draws by it, and learns from that what errors of latents are worth in pictures."""
        expected = self.offset - 10 * math.log10(max(choice.error, 1e-12))
        place = self._built(recipe)
        found = decibels(self._compared(place, self.order.checked, 1))
        size = quant.read_manifest(place).weights_bytes
        self.rounds.append(
            Round(
                expected_psnr_db=expected,
                psnr_db=found,
                bytes=size,
                expected_bytes=choice.bytes,
                expected_seconds=choice.seconds,
                learned=recipe.learns,
            )
        )
        self.offset += found - expected
        return place, found

    def _built(self, recipe: Recipe) -> Path:
        """The artifact of a recipe, kept until all is done."""
        order = self.order
        more = list(order.learned_on) if recipe.learns else []
        place = self.once.path(f"recipe-{digest((recipe, more) if more else recipe)}")
        self.places.add(place)
        if not (place / quant.MANIFEST).is_file():
            # plans are made from the first subjects, which are more where rounding is learned
            plans = order.work / ("plans-learned" if recipe.learns else "plans")
            places, what = (order.folder, place, recipe), ([*order.subjects, *more], order.defaults, order.model)
            quantize_folder(QuantizationOrder(*places, *what, seed=order.seed, plans=plans), self.progress)
        return place

    def _compared(self, place: Path, subjects: Sequence[Subject], first: int) -> ProfileFidelity:
        """An artifact's pictures of some subjects against float's."""
        name = f"drawn-{digest((place.name, list(subjects), first))}"
        return self.once.get(name, ProfileFidelity, lambda: self._draw(place, subjects, first))

    def _draw(self, place: Path, subjects: Sequence[Subject], first: int) -> ProfileFidelity:
        order, truth = self.order, self._float()
        with opened(place, self.components, order.means) as (card, profile):
            features = temporal_features(self.components, [card], subjects[0], order.defaults, truth.denoiser.module)
            denoisers: dict[str, Denoiser] = {FLOAT: truth, card.name: profile}
            found = evaluate(
                self.components,
                denoisers,
                subjects,
                order.defaults,
                seed=self._seed(first),
                checker=order.checker,
                features=features,
                progress=self.progress,
            )
        return next(one for one in found if one.profile == card.name)

    def _seed(self, first: int) -> int:
        """Of the first of some pictures."""
        return self.order.seed + 1_000_000 + first

    def _float(self) -> Remembered:
        if self.truth is None:
            self.truth = Remembered(TorchDenoiser(FLOAT, load_denoiser(self.components)))
        return self.truth

    def _finished(self, search: Search, recipe: Recipe, place: Path, held: ProfileFidelity) -> Tuned:
        """Puts the artifact in its place, with all that is to be told of it."""
        order = self.order
        first = self._seed(1 + len(order.checked))
        quant.set_fidelity(place, held.summary() | facts_of(place, order, self.components, self._float(), first))
        story = self._story(search)
        (place / RECIPE).write_text(text_of(recipe), encoding="utf-8")
        (place / STORY).write_text(story.model_dump_json(indent=1) + "\n", encoding="utf-8")
        order.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(order.out) as partial:
            shutil.copytree(place, partial, dirs_exist_ok=True)
        self._clear()
        return Tuned(order.out / quant.MANIFEST, story)

    def _clear(self) -> None:
        """Removes artifacts that were built on the way; a killed search keeps them."""
        for one in self.places:
            shutil.rmtree(one, ignore_errors=True)

    def _story(self, search: Search) -> Story:
        spots = tuple(
            Spot(psnr_db=self.offset - 10 * math.log10(max(one.error, 1e-12)), bytes=one.bytes, seconds=one.seconds)
            for one in search.curve()
        )
        order = self.order
        return Story(
            objective=order.objective, min_psnr_db=order.min_psnr_db, rounds=tuple(self.rounds), frontier=spots
        )

    def _measure(self) -> Measured:
        """What the search needs, measured once for a model, its subjects and settings."""
        order = self.order
        bench = Bench(
            self.components,
            load_denoiser(self.components),
            order.subjects,
            order.defaults,
            order.means,
            order.seed,
            self.progress,
            self.once,
        )
        return measure(bench, base_recipe(), order.probed)

    def _facts(self) -> str:
        """Equal for two orders exactly when what is kept of one may be used by the other."""
        order = self.order
        sha256 = denoiser_sha256(order.folder, self.components.denoiser_part)
        told = (FORMAT, sha256, list(order.subjects), order.defaults.model_dump_json(), order.seed, order.probed)
        return repr((told, base_recipe()))
