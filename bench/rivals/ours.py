"""What this product serves, behind the rivals' door: artifacts by built-in recipes, run by the openvino backend.

Calibrated on the same calls as rivals are. With each lies a guidance plan, which whole pictures may be drawn with. Must
not know what is measured.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import quant
from bench.rivals import Work
from quant.guidance.macs import costs, saving
from quant.guidance.plan import GuidancePlan, GuidanceStep
from quant.recipe_parts import Rounding

PLANNED = "BRBRBRBRRBRRRRBRRRRRRBRRB"
"""Steps of the plan that shapes-unet's shipped artifacts have, found for 1% more error of its final latents. A random
model's branches hardly differ, so that a plan of its own would say nothing: speed is told by a trained model's."""

SCALE = 4.5
"""Guidance of all pictures that benches of one picture draw."""

GUIDANCE_RANGE = (0.5, 1.25)
LETTERS = {"B": GuidanceStep(), "R": GuidanceStep(unconditional="reuse")}


@dataclass(frozen=True)
class Ours:
    """A recipe's artifact."""

    name: str
    recipe: Callable[[], quant.Recipe]
    note: str
    builds: bool = True

    def why_not(self) -> str | None:
        """It always can."""
        return None

    def build(self, work: Work) -> None:
        """Calibrates, quantizes and saves, at the size that serves all."""
        work = work.home or work
        recipe = self.recipe()
        if (work.folder / quant.MANIFEST).is_file() and _recipe_of(work) == recipe:
            return
        started, module, calls = time.monotonic(), work.load(), work.calls()

        def run(answer: Callable[[quant.Call], Tensor]) -> None:
            for call in calls:
                answer(call)

        plan = _planned(module, calls)
        rotation = quant.rotate_(module, run, recipe) if quant.rotates(recipe) else None
        made = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
        about: dict[str, Any] = {"calibration": {"calls": len(calls)}, "version": "bench", "guidance": plan}
        about |= {"model": work.name.partition("@")[0], "model_sha256": sha256_of(work), "rotation": rotation}
        quant.save(work.folder, module, made, recipe, **about, build_seconds=time.monotonic() - started)

    def open(self, work: Work) -> quant.Executable:
        """The artifact, verified and opened as a worker does. Code is compiled at the first call."""
        home = work.home or work
        manifest = quant.read_manifest(home.folder)
        hashes = quant.Hashes(cache_of(home) / "hashes.json")
        quant.verify(home.folder, manifest, sha256_of(home, hashes), hashes)
        options = quant.Options(cache_dir=cache_of(home), threads=work.threads)
        return quant.open_backend(manifest.backend, home.folder, manifest, home.empty, options)

    def files(self, work: Work) -> list[Path]:
        """The artifact."""
        home = work.home or work
        return [home.folder / name for name in quant.read_manifest(home.folder).files]

    def plan(self, work: Work) -> GuidancePlan | None:
        """The artifact's guidance plan."""
        return quant.read_manifest((work.home or work).folder).guidance


def _recipe_of(work: Work) -> quant.Recipe:
    return quant.Recipe.model_validate(quant.read_manifest(work.folder).recipe)


def cache_of(work: Work) -> Path:
    """Where compiled code of an artifact is kept: beside it, since an artifact's folder is replaced whole."""
    return work.folder.with_name(f"{work.folder.name}-cache")


def sha256_of(work: Work, hashes: quant.Hashes | None = None) -> str:
    """What an artifact belongs to: the float files, or where there are none, the subject's name."""
    if work.source is None:
        return hashlib.sha256(work.name.encode()).hexdigest()
    return quant.sha256_of([work.source / "config.json", *sorted(work.source.glob("*.safetensors"))], hashes)


def _planned(module: Any, calls: Any) -> GuidancePlan | None:
    """The known plan on the calls' own schedule; None where calls are of one branch, or of another number of steps."""
    first, total = calls[0], int(calls[0].clock.total[0])
    both = set(first.clock.branch.tolist()) == {quant.COND, quant.UNCOND}
    if not both or total != len(PLANNED) or first.timestep is None:
        return None
    times = {int(call.clock.step[0]): float(call.timestep[0]) for call in calls if call.timestep is not None}
    steps = tuple(LETTERS[letter] for letter in PLANNED)
    return GuidancePlan(
        timesteps=tuple(times[step] for step in range(total)),
        steps=steps,
        guidance=tuple(SCALE * factor for factor in GUIDANCE_RANGE),
        calibrated_guidance=SCALE,
        saving=saving(steps, costs(module, first)),
    )


def _nearest(name: str) -> quant.Recipe:
    """A recipe without AdaRound, which would take days at full size: speed and bytes do not depend on it."""
    recipe = quant.load_recipe(name)
    return recipe.model_copy(update={"name": f"{name}-nearest", "rounding": Rounding()})


TFMQ_W8A8 = Ours("tfmq-w8a8", lambda: quant.load_recipe("tfmq-w8a8"), "the built-in recipe; the rest in bfloat16")
TRDQ_W8A8 = Ours("trdq-w8a8", lambda: quant.load_recipe("trdq-w8a8"), "the built-in recipe; the rest in float32")
TFMQ_W4A8 = Ours("tfmq-w4a8", lambda: _nearest("tfmq-w4a8"), "the built-in recipe, weights rounded to nearest")
