"""What benches run: public models at a size of latents, and single layers, by name; with the calls that all rivals get.

`sd15@64` is the model `sd15` of `bench.public` at 64x64 latents. `linear-1024x1152x4608` is a linear layer from 1152 to
4608 features on 1024 rows, `conv-320x640x32` a 3x3 convolution from 320 to 640 channels on two pictures of 32x32,
`video-5x16` a video model on 5 frames of 16x16 latents (`bench.made`), `shapes-dit` that model of the zoo. Must not
know what is measured.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import quant
from bench.calls import CLOCK, Answered, load_calls, save_calls
from bench.made import Layer, Video
from bench.public import MODELS, SCALE_OF_VAE, default_side, write_model
from bench.rivals import Work
from bench.rivals.ours import SCALE
from jobs.profile import Defaults
from pipelines.calibrate import run_pipeline
from pipelines.denoiser import DenoiserCall, call_module
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_components, load_denoiser
from pipelines.quantized import empty_denoiser
from zoo.build import ZOO, model_defaults
from zoo.worlds import world_of

STEPS: Final = 25
PROMPTS: Final = ("a b c d e", "f g h i")
"""Of the pictures that are calibrated on; text encoders of random weights know letters only."""

UNSEEN: Final = "k l m n o p"
UNSEEN_SEED: Final = 1000


class BadSubject(ValueError):
    """No such subject."""


@dataclass(frozen=True)
class Picture:
    """A model at one size, from a folder. `root` holds all that benches keep."""

    name: str
    root: Path

    @property
    def model(self) -> str:
        """Its name in `bench.public.MODELS`."""
        return self.name.partition("@")[0]

    @property
    def side(self) -> int:
        """Of latents."""
        return int(self.name.partition("@")[2])

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.root / "models" / self.model

    @property
    def home(self) -> Picture | None:
        """The model at the size at which artifacts are calibrated; None if it is this."""
        smallest = min(self.side, default_side(self.model))
        return None if smallest == self.side else Picture(f"{self.model}@{smallest}", self.root)

    @property
    def defaults(self) -> Defaults:
        """At which settings pictures are drawn."""
        side = SCALE_OF_VAE * self.side
        return Defaults(width=side, height=side, num_inference_steps=STEPS, guidance_scale=SCALE)

    @property
    def components(self) -> Components:
        """The pipeline's parts but the denoiser's weights, read once for all sizes."""
        return _components(self.folder)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of what is calibrated on."""
        return PROMPTS

    @property
    def unseen(self) -> str:
        """Of what is drawn."""
        return UNSEEN

    def write(self) -> None:
        """Makes the model's folder, if it is missing."""
        write_model(self.model, self.folder)

    def prepare(self) -> None:
        """Writes the model and records its calls, whatever of that is missing."""
        if self.home is not None:
            self.home.prepare()
        self.write()
        if not self._file("test").is_file():
            components, module = self.components, load_denoiser(self.components)
            prompts = self.prompts[: 1 if self.home else None]
            save_calls(self._file("calibration"), self._record(components, module, prompts, seed=0)[0])
            answered, latents = self._record(components, module, [self.unseen], seed=UNSEEN_SEED)
            save_file({"latents": latents}, self._file("latents"))
            save_calls(self._file("test"), answered)

    def calibration(self) -> list[quant.Call]:
        """Calls of whole pictures, both branches of all of them at each step."""
        return [one.call for one in load_calls(self._file("calibration"))]

    def test(self) -> list[Answered]:
        """Calls of one more picture with the float model's answers."""
        return load_calls(self._file("test"))

    def latents(self) -> Tensor:
        """That picture's final latents by the float model, [1, ...]."""
        latents: Tensor = load_file(self._file("latents"))["latents"]
        return latents

    def work(self, rival: str, threads: int) -> Work:
        """What a rival gets."""
        components = self.components
        home = None if self.home is None else self.home.work(rival, threads)
        return Work(
            name=self.name,
            load=lambda: load_denoiser(components),
            empty=lambda: empty_denoiser(components),
            calls=self.calibration,
            folder=self.root / "rivals" / self.name / rival,
            source=self.folder / components.denoiser_part,
            threads=threads,
            home=home,
        )

    def _file(self, name: str) -> Path:
        return self.root / "calls" / self.name / f"{name}.safetensors"

    def _record(
        self, components: Components, module: nn.Module, prompts: Sequence[str], seed: int
    ) -> tuple[list[Answered], Tensor]:
        answered: list[Answered] = []
        latents: list[Tensor] = []
        kind = type(components.skeleton)

        def submit(call: DenoiserCall) -> Tensor:
            output = call_module(module, call)
            parts = library_calls(kind, call)
            if len(parts) > 1:
                raise BadSubject(f"{self.name}: a call that the library takes in {len(parts)} parts is not timed")
            answered.append(Answered(plain(parts[0]), output.float()))
            return output

        def stepped(step: int, now: Tensor) -> None:
            latents[:] = [now.detach().float().clone()]

        seeds = [seed + number for number in range(len(prompts))]
        run_pipeline(components, list(prompts), seeds, self.defaults, submit, stepped=stepped)
        return answered, latents[0]


@dataclass(frozen=True)
class BuiltIn(Picture):
    """A model of the shapes world at its defaults: of the zoo, or, under another name, in the folder of models."""

    @property
    def model(self) -> str:
        """Its name."""
        return self.name

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return next((place for place in (ZOO / "models" / self.name, super().folder) if place.is_dir()), super().folder)

    @property
    def home(self) -> None:
        """Artifacts are calibrated as they are run."""
        return None

    @property
    def defaults(self) -> Defaults:
        """The model's own."""
        return model_defaults(self.folder)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of what is calibrated on."""
        return tuple(world_of(self.defaults).captions(len(PROMPTS), 1))

    @property
    def unseen(self) -> str:
        """Of what is drawn."""
        return world_of(self.defaults).asked(1)[0].prompt

    def write(self) -> None:
        """It is there."""

    def _record(
        self, components: Components, module: nn.Module, prompts: Sequence[str], seed: int
    ) -> tuple[list[Answered], Tensor]:
        answered, latents = super()._record(components, module, prompts, seed)
        return list(both_branches(answered)), latents


def both_branches(answered: Sequence[Answered]) -> Iterator[Answered]:
    """Calls with both branches of a step in each, where a pipeline sends every branch in a call of its own."""
    waiting: list[Answered] = []
    for one in answered:
        if waiting and _is_partner(waiting[0].call, one.call):
            first = waiting.pop()
            parts = [(getattr(first.call.clock, name), getattr(one.call.clock, name)) for name in CLOCK]
            rows = {name: torch.cat([first.call.rows[name], one.call.rows[name]]) for name in one.call.rows}
            call = replace(one.call, rows=rows, clock=quant.StepClock(*map(torch.cat, parts)))
            yield Answered(call, torch.cat([first.answer, one.answer]))
        else:
            yield from waiting
            waiting = [one]
    yield from waiting


def _is_partner(one: quant.Call, other: quant.Call) -> bool:
    """Whether two calls are one step's, of one branch each."""
    branches = [set(call.clock.branch.tolist()) for call in (one, other)]
    return torch.equal(one.clock.step, other.clock.step) and branches[0] != branches[1] and max(map(len, branches)) == 1


@functools.lru_cache(maxsize=4)
def _components(folder: Path) -> Components:
    return load_components(folder)


def subject(name: str, root: Path) -> Subject:
    """The subject of that name.

    Raises:
        BadSubject: there is none.
    """
    if made := re.fullmatch(r"(linear|conv)-(\d+)x(\d+)x(\d+)", name):
        kind, *sizes = made.groups()
        if kind == "linear" and int(sizes[0]) % 2:
            raise BadSubject(f"{name}: rows come in two halves, their number must be even")
        return Layer(name, root, kind, (int(sizes[0]), int(sizes[1]), int(sizes[2])))
    if made := re.fullmatch(r"(small-)?video-(\d+)x(\d+)", name):
        return Video(name, root, frames=int(made[2]), side=int(made[3]), small=bool(made[1]))
    if re.fullmatch(r"[a-z0-9-]+@\d+", name) and name.partition("@")[0] in MODELS:
        return Picture(name, root)
    if re.fullmatch(r"[a-z0-9-]+", name) and name not in MODELS and BuiltIn(name, root).folder.is_dir():
        return BuiltIn(name, root)
    raise BadSubject(
        f"no subject {name!r}; a model with a size, such as sd15@32, a layer, such as conv-320x320x32, video-5x16, "
        "or a built-in model"
    )


Subject = Picture | Layer | Video
