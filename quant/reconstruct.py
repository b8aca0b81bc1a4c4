"""Learns the rounding of weights, and scales of inputs, unit by unit, to keep each unit's float output. Knows no model.

Units are taken in the order in which they run (BRECQ, Li et al., ICLR 2021; TFMQ-DM's and Q-Diffusion's code): inputs
come from the model with all earlier units quantized, targets from the float model, and the layers of a unit learn
together. A unit that would end up worse than it was stays as it was.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.blocks import Unit, find_units
from quant.capture import Sweep
from quant.errors import QuantError
from quant.grid import integer_range
from quant.layers import Quantized, QuantizedLayer, parts_of, quantizable_layers
from quant.learn import Learner, weight_bits
from quant.recipe_parts import Rounding
from quant.report import Learned, Reconstruction
from quant.samples import Samples
from quant.stacks import NotByRows, Stack
from quant.stages import Stages

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]

NO_SAMPLES = "reconstruction needs samples: calibrate with a wish for some"


def reconstruct(
    module: nn.Module,
    quantized: Mapping[str, Quantized],
    samples: Samples | None,
    rounding: Rounding,
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
    stages: Stages | None = None,
    memory_bytes: int = 2 << 30,
    example: Call | None = None,
) -> Reconstruction:
    """Reconstructs quantized layers in place, and returns what became of each unit.

    Afterwards `integers` of the quantized layers are the learned ones, and so is `input_scale` where the recipe has
    activation iterations. A unit whose arguments cannot be cut into rows stays as it was.

    Args:
        module: the float model, all float layers in place; as before afterwards.
        quantized: dotted name of each layer to reconstruct to its form, rounded to nearest.
        samples: rows of calls of the model.
        rounding: units, iterations and constants.
        seed: of the choice of rows in each iteration.
        progress: told how many units are done.
        stages: keeps finished units, so that a killed run goes on. One that cannot be of these layers is done again.
        memory_bytes: what captured inputs and outputs may take, about.
        example: any call. With one, samples are asked for only if a unit is left to learn.

    Raises:
        QuantError: there is no sample; a weight, a unit's float output or its loss is not finite; or scales are to be
            learned of a layer whose scale follows time.
    """
    if not quantized:
        return Reconstruction()
    if samples is None or (example is None and samples.count == 0):
        raise QuantError(NO_SAMPLES)
    units = find_units(module, list(quantized), example or samples.calls[0], rounding.grain)
    learns_scales = rounding.activation_iterations > 0 and _has_scales(quantized)
    job = _Job(module, quantized, samples, rounding, seed, progress, stages or Stages(None, ""), memory_bytes)
    with torch.inference_mode(False), _beside(module, quantized), _without_gradients(module):
        with _inputs_rounded(quantized, False):
            found = job.learn(units, "weights")
        if learns_scales:
            with _inputs_rounded(quantized, True):
                found = job.learn(units, "scales")
    return found


@dataclass(frozen=True)
class _Job:
    """What `reconstruct` was asked for."""

    module: nn.Module
    quantized: Mapping[str, Quantized]
    samples: Samples
    rounding: Rounding
    seed: int
    progress: Progress
    stages: Stages
    memory_bytes: int

    def learn(self, units: Sequence[Unit], what: str) -> Reconstruction:
        """Has all units learn their "weights" or "scales", or takes what an earlier run learned."""
        stored = {unit.name: known for unit in units if (known := self._known(unit, what)) is not None}
        if len(stored) == len(units):
            self.progress(f"reconstructing {what}", len(units), len(units))
            return Reconstruction(stored)
        if self.samples.count == 0:
            raise QuantError(NO_SAMPLES)
        sweep = Sweep(
            self.module,
            units,
            self.quantized,
            self.samples,
            chunk=self.rounding.batch,
            memory_bytes=self.memory_bytes,
            seed=self.seed,
        )
        learned: dict[str, Learned] = {}
        left: dict[str, str] = {}
        with sweep:
            for done, unit in enumerate(units):
                self.progress(f"reconstructing {what}", done, len(units))
                known = stored.get(unit.name)
                try:
                    learned[unit.name] = self._learned(sweep, unit, what) if known is None else known
                except NotByRows as error:
                    log.warning("%s stays as it is, not reconstructed: %s", unit.name, error)
                    left[unit.name] = str(error)
                sweep.finish(unit)
        self.progress(f"reconstructing {what}", len(units), len(units))
        return Reconstruction(learned, left)

    def _known(self, unit: Unit, what: str) -> Learned | None:
        """What an earlier run learned of a unit, put in place; None if it is left to learn."""
        found = self.stages.load(f"{what}.{unit.name}")
        return None if found is None else self._restored(unit, found, what)

    def _learned(self, sweep: Sweep, unit: Unit, what: str) -> Learned:
        started, floats = time.monotonic(), quantizable_layers(self.module)
        stacks = sweep.capture(unit)
        learner = Learner(
            unit.name,
            self.module.get_submodule(unit.name),
            {name: floats[name] for name in unit.layers},
            {name: self.quantized[name] for name in unit.layers},
            stacks,
            sweep.computing,
            self.seed,
        )
        with torch.enable_grad():
            learn = learner.learn_rounding if what == "weights" else learner.learn_scales
            found = Learned(learn(self.rounding), _power(stacks, self.rounding.batch), self._missed(stacks))
        self.stages.save(f"{what}.{unit.name}", self._tensors(unit, found, what), time.monotonic() - started)
        return found

    def _missed(self, stacks: Sequence[Stack]) -> int:
        """Rows that memory had no room for; others that are not there never reached the unit."""
        row_bytes = max((stack.layout.row_bytes for stack in stacks), default=0)
        fits = self.samples.count * row_bytes <= self.memory_bytes
        return self.samples.missed + (0 if fits else self.samples.count - sum(stack.rows for stack in stacks))

    def _parts(self, unit: Unit) -> Iterator[tuple[str, QuantizedLayer]]:
        for name in unit.layers:
            for index, part in enumerate(parts_of(self.quantized[name])):
                yield f"{name}.{index}", part

    def _tensors(self, unit: Unit, found: Learned, what: str) -> dict[str, Tensor]:
        tensors = {"learned": torch.tensor(found, dtype=torch.float64)}
        for name, part in self._parts(unit):
            tensors[f"integers.{name}"] = part.integers
            if what == "scales" and part.input_scale is not None:
                tensors[f"input_scale.{name}"] = part.input_scale
        return tensors

    def _restored(self, unit: Unit, stored: Mapping[str, Tensor], what: str) -> Learned | None:
        """What an earlier run learned, put in place; None where it cannot have learned that of these layers."""
        fault = self._misfit(unit, stored, what)
        if fault:
            log.warning("the stage %s.%s is of other layers and done again: %s", what, unit.name, fault)
            return None
        for name, part in self._parts(unit):
            part.integers = stored[f"integers.{name}"].to(part.integers.device)
            if f"input_scale.{name}" in stored:
                part.input_scale = stored[f"input_scale.{name}"].to(part.integers.device)
        loss, power, missed = stored["learned"].tolist()
        return Learned(loss, power, int(missed))

    def _misfit(self, unit: Unit, stored: Mapping[str, Tensor], what: str) -> str:
        """Why stored tensors cannot be what this unit learned; empty where they can.

        Learned weights are the nearest integers or their neighbours; while scales learn, weights stay.
        """
        expected = self._tensors(unit, Learned(0.0, 0.0, 0), what)
        strange = sorted(expected.keys() ^ stored.keys())
        strange += [name for name in expected.keys() & stored.keys() if not _alike(expected[name], stored[name])]
        if strange:
            return f"{strange[0]} is missing, not expected, or of another shape"
        for name, part in self._parts(unit):
            found, ends = stored[f"integers.{name}"].to(part.integers.device), integer_range(weight_bits(part))
            steps = int((found.int() - part.integers.int()).abs().max())
            if steps > (1 if what == "weights" else 0) or not _within(found, ends):
                return f"integers.{name} are not near those of the weights"
            if what == "scales" and part.input_scale is not None and not _positive(stored[f"input_scale.{name}"]):
                return f"input_scale.{name} is not positive and finite"
        return ""


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype


def _within(integers: Tensor, ends: tuple[int, int]) -> bool:
    return ends[0] <= int(integers.min()) and int(integers.max()) <= ends[1]


def _positive(scale: Tensor) -> bool:
    return bool((torch.isfinite(scale) & (scale > 0)).all())


def _power(stacks: Sequence[Stack], batch: int) -> float:
    """The loss that zeros would have: what targets lose, as `quant.learn` counts it. Some rows at a time."""
    total, rows = 0.0, max(1, sum(stack.rows for stack in stacks))
    for stack in stacks:
        for target in stack.targets:
            summed = target.shape[2] if target.ndim > 2 else 1
            squares = math.fsum(float(some.double().square().sum()) for some in torch.split(target, batch))
            total += squares * summed / target.numel() * stack.rows / rows
    return total


def _has_scales(quantized: Mapping[str, Quantized]) -> bool:
    """Whether any layer has an input scale to learn.

    Raises:
        QuantError: one has scales that follow time.
    """
    timed = [name for name, layer in quantized.items() if any(part.follows_time for part in parts_of(layer))]
    if timed:
        raise QuantError(
            f"input scales that follow time are not learned, as {timed[0]} has: "
            "set activation_iterations to 0, or steps and branches to shared"
        )
    return any(part.input_scale is not None for layer in quantized.values() for part in parts_of(layer))


@contextmanager
def _beside(module: nn.Module, quantized: Mapping[str, Quantized]) -> Iterator[None]:
    """Within it quantized layers are on the module's device."""
    device = next(module.parameters()).device
    before = {name: next(layer.buffers()).device for name, layer in quantized.items()}
    try:
        for layer in quantized.values():
            layer.to(device)
        yield
    finally:
        for name, layer in quantized.items():
            layer.to(before[name])


@contextmanager
def _inputs_rounded(quantized: Mapping[str, Quantized], rounds: bool) -> Iterator[None]:
    """Within it quantized layers round their inputs, those that have a grid, or none does."""
    parts = [part for layer in quantized.values() for part in parts_of(layer)]
    before = [part.rounds_input for part in parts]
    try:
        for part in parts:
            part.rounds_input = rounds and part.input_scale is not None
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.rounds_input = was


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Within it no parameter of the module asks for gradients."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
