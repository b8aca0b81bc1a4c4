"""`python -m zoo.build`: makes the shipped artifacts of the built-in models and measures them.

Calibration prompts are ordinary captions; the fidelity that goes into the manifest is measured on prompts that neither
training nor calibration has seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from torch import Tensor, nn

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults, ProfileCard
from jobs.spread import Point, Spread
from pipelines import calibrate
from pipelines.beside import Remembered, timed
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.features import temporal_features
from pipelines.fidelity import OnPicture, ProfileFidelity, evaluate
from pipelines.load import Components, load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import load_profile
from pipelines.spreading import measure_point, measure_spread, temporal_errors
from quant.metrics import Features
from zoo.frechet import FEWEST
from zoo.worlds import PICTURES, World, checker_of, world_of

ZOO = Path(__file__).parent
CALIBRATION_PROMPTS = 64
LEARNING_PROMPTS = 256
TIMED_PROMPTS = 8
SPREAD_PROMPTS = 128
SPREAD_SEED = 1000
"""Pictures that a guard later ranks traffic among."""

POINT_PROMPTS = 64
POINTS: tuple[dict[str, float], ...] = (
    {"num_inference_steps": 10},
    {"num_inference_steps": 50},
)
"""Other settings that PSNR is measured at, as they differ from the model's defaults."""

ROTATED = ("trdq-w8a8", "trdq-w8a8-cfg", "trdq-w4a8", "trdq-w4a8-cfg", "tfmq-w8a8-cfg", "float-cfg")
RECIPES = {
    "shapes-unet": ("w8a8", "tfmq-w8a8", "tfmq-w4a8", "tfmq-w4a32", "tfmq-w4a8-tib", "tfmq-w4a8-cache", *ROTATED),
    "shapes-dit": ROTATED,
    "shapes-video": ("tfmq-w8a8", "trdq-w8a8", "trdq-w4a8-cfg"),
}
SHIPPED = {model: names for model, names in RECIPES.items() if (ZOO / "models" / model).is_dir()}
"""Recipes whose artifacts come with the product, by model; those of models that are there."""


@dataclass(frozen=True, slots=True)
class Means:
    """Where compiled code may be kept, what it may take, and how many threads may be used."""

    cache_dir: Path
    threads: int = 0
    cache_bytes: int = quant.CACHE_BYTES


def calibration_prompts(count: int = CALIBRATION_PROMPTS, seed: int = 1, world: World = PICTURES) -> list[str]:
    """Captions of training scenes."""
    return world.captions(count, seed)


def measure(
    components: Components,
    denoisers: dict[str, Denoiser],
    count: int,
    features: Mapping[str, Features] | None = None,
    progress: calibrate.Progress = calibrate.silent,
    on_picture: OnPicture | None = None,
) -> list[ProfileFidelity]:
    """Every denoiser against float on unseen prompts, with prompt accuracy by the checker and Fréchet distance."""
    defaults = model_defaults(components.folder)
    world = world_of(defaults)
    known = {one.prompt: one for one in world.asked(count)}
    return evaluate(
        components,
        denoisers,
        [one.prompt for one in world.asked(count)],
        defaults,
        seed=SPREAD_SEED,
        checker=checker_of(known),
        reference=world.reference() if world.reference and count >= FEWEST else None,
        features=features,
        on_picture=on_picture,
        progress=progress,
    )


class _Recorder(TorchDenoiser):
    """The float denoiser, keeping every call that it runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__("float", module)
        self.calls: list[DenoiserCall] = []

    def run(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        return super().run(call)


def typical_calls(components: Components, count: int) -> list[DenoiserCall]:
    """`count` calls that drawing unseen prompts makes, spread over the steps."""
    recorder = _Recorder(load_denoiser(components))
    defaults = model_defaults(components.folder)
    prompts = [one.prompt for one in world_of(defaults).asked(4)]
    evaluate(components, {"float": recorder}, prompts, defaults, seed=2000)
    return recorder.calls[:: max(1, len(recorder.calls) // count)][:count]


def model_defaults(folder: Path) -> Defaults:
    """The defaults that the model's card states."""
    return Defaults.model_validate(json.loads((folder / "halftone.json").read_text(encoding="utf-8"))["defaults"])


def card_of(artifact: Path) -> ProfileCard:
    """The profile card of an artifact in the zoo."""
    return Manifest.read(artifact / quant.MANIFEST).card(artifact)


@dataclass(frozen=True)
class Model:
    """A built-in model, and what its float form answered so far."""

    components: Components
    truth: Remembered


def open_model(name: str) -> Model:
    """A built-in model of the zoo."""
    return open_folder(ZOO / "models" / name)


def open_folder(folder: Path) -> Model:
    """A model of the shapes world in a folder."""
    components = load_components(folder)
    return Model(components, Remembered(TorchDenoiser("float", load_denoiser(components))))


def build(model: str, opened: Model, recipe_name: str, cache: Path, count: int) -> None:
    """Quantize a model by a built-in recipe into the zoo's artifacts, measure, and write the measurement beside it."""
    folder, out = opened.components.folder, ZOO / "artifacts" / model / recipe_name
    recipe = quant.load_recipe(recipe_name)
    scratch = _scratch(cache / model, recipe)
    defaults = model_defaults(folder)
    prompts = world_of(defaults).captions(LEARNING_PROMPTS if recipe.learns else CALIBRATION_PROMPTS, 1)
    plans = cache / model / "plans"
    order = QuantizationOrder(folder, out, recipe, prompts, defaults, model, scratch=scratch, plans=plans)
    with Progress() as bar:
        line = bar.add_task(f"{model}/{recipe_name}")

        def tell(what: str, done: int, total: int) -> None:
            bar.update(line, description=what, completed=done, total=total)

        quantize_folder(order, tell)
        summary = summary_of(opened, card_of(out), Means(cache), count, tell)
    print(json.dumps(summary | {"profile": recipe_name}))
    quant.set_fidelity(out, summary)


def summary_of(
    model: Model, card: ProfileCard, means: Means, count: int, progress: calibrate.Progress = calibrate.silent
) -> dict[str, object]:
    """What a manifest's `fidelity` holds: an artifact's pictures against float's, and seconds of both in turn."""
    components, defaults = model.components, model_defaults(model.components.folder)
    profile = load_profile(card, components, means)
    features = temporal_features(components, [card], world_of(defaults).asked(1)[0].prompt, defaults)
    denoisers: dict[str, Denoiser] = {"float": model.truth, card.name: profile}
    found = {one.profile: one for one in measure(components, denoisers, count, features, progress)}
    plain: dict[str, Denoiser] = {"float": model.truth.denoiser, card.name: profile}
    seconds = timed(components, plain, timed_prompts(world_of(defaults)), defaults)
    told = {"seconds": seconds[card.name], "float_seconds": seconds["float"]}
    spread = spread_of_profile(model, card, profile, min(count, SPREAD_PROMPTS), progress)
    return found[card.name].summary() | told | {"spread": spread.model_dump(mode="json")}


def spread_of_profile(
    model: Model, card: ProfileCard, profile: Denoiser, count: int, progress: calibrate.Progress = calibrate.silent
) -> Spread:
    """Picture by picture: an artifact beside float, at the model's defaults and at `POINTS`."""
    components, defaults = model.components, model_defaults(model.components.folder)
    prompts = [one.prompt for one in world_of(defaults).asked(count)]
    spread = measure_spread(components, model.truth, profile, prompts, defaults, seed=SPREAD_SEED, progress=progress)
    few = prompts[: min(count, POINT_PROMPTS)]
    points: list[Point] = []
    for other in POINTS:
        progress("points", len(points), len(POINTS))
        chosen = Defaults.model_validate(defaults.model_dump() | other)
        points.append(measure_point(components, model.truth, profile, few, chosen, seed=SPREAD_SEED))
    errors = temporal_errors(components, card, prompts[0], defaults)
    return spread.model_copy(update={"points": tuple(points), "temporal_error": errors})


def remeasure(model: str, opened: Model, name: str, cache: Path, count: int) -> None:
    """Measure an artifact's spread anew and write it beside the rest of its fidelity."""
    out = ZOO / "artifacts" / model / name
    card = card_of(out)
    with Progress() as bar:
        line = bar.add_task(f"{model}/{name}")

        def tell(what: str, done: int, total: int) -> None:
            bar.update(line, description=what, completed=done, total=total)

        profile = load_profile(card, opened.components, Means(cache))
        spread = spread_of_profile(opened, card, profile, min(count, SPREAD_PROMPTS), tell)
    fidelity = quant.read_manifest(out).fidelity or {}
    quant.set_fidelity(out, fidelity | {"spread": spread.model_dump(mode="json")})


def timed_prompts(world: World = PICTURES) -> list[str]:
    """What is drawn to take the time of profiles."""
    return [one.prompt for one in world.asked(TIMED_PROMPTS)]


def _scratch(cache: Path, recipe: quant.Recipe) -> Path:
    """Where stages lie: recipes that reconstruct the same weights share them."""
    key = hashlib.sha256(quant.reconstruction_key(recipe).encode()).hexdigest()[:16]
    return cache / "stages" / key


def main() -> None:
    """Build artifacts, one after the other."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipes", nargs="*", help="names of recipes; by default all that are shipped")
    options.add_argument("--model", choices=SHIPPED, help="by default all")
    options.add_argument("--count", type=int, default=256, help="prompts to measure on")
    options.add_argument("--spread", action="store_true", help="only measure the artifacts' spread anew")
    options.add_argument("--cache", type=Path, default=Path("build/cache"))
    choice = options.parse_args()
    for model in [choice.model] if choice.model else SHIPPED:
        opened = open_model(model)
        for name in choice.recipes or SHIPPED[model]:
            (remeasure if choice.spread else build)(model, opened, name, choice.cache, choice.count)


if __name__ == "__main__":
    main()
