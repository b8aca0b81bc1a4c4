"""Learns the rounding of weights, and scales of inputs, unit by unit, to keep each unit's float output. Knows no model.

Units are taken in the order in which they run (BRECQ, Li et al., ICLR 2021; TFMQ-DM's and Q-Diffusion's code): inputs
come from the model with all earlier units quantized, targets from the float model, and the layers of a unit learn
together. A unit that would end up worse than it was stays as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.blocks import Unit, find_units
from quant.capture import Sweep
from quant.errors import QuantError
from quant.layers import Quantized, QuantizedLayer, parts_of, quantizable_layers
from quant.learn import Learner
from quant.recipe import Rounding
from quant.samples import Samples
from quant.stacks import NotByRows
from quant.stages import Stages

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


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
) -> dict[str, float]:
    """Reconstructs quantized layers in place, and returns each unit's final loss on all samples, by name.

    Afterwards `integers` of the quantized layers are the learned ones, and so is `input_scale` where the recipe has
    activation iterations. A unit whose arguments cannot be cut into rows stays as it was and is told to the log.

    Args:
        module: the float model, all float layers in place; as before afterwards.
        quantized: dotted name of each layer to reconstruct to its form, rounded to nearest.
        samples: rows of calls of the model.
        rounding: units, iterations and constants.
        seed: of the choice of rows in each iteration.
        progress: told how many units are done.
        stages: keeps finished units, so that a killed run goes on.
        memory_bytes: what captured inputs and outputs may take, about.

    Raises:
        QuantError: there is no sample; a weight, a unit's float output or its loss is not finite; or scales are to be
            learned of a layer whose scale follows time.
    """
    if not quantized:
        return {}
    if samples is None or samples.count == 0:
        raise QuantError("reconstruction needs samples: calibrate with a wish for some")
    units = find_units(module, list(quantized), samples.calls[0], rounding.grain)
    learns_scales = rounding.activation_iterations > 0 and _has_scales(quantized)
    job = _Job(module, quantized, samples, rounding, seed, progress, stages or Stages(None, ""), memory_bytes)
    with torch.inference_mode(False), _beside(module, quantized), _without_gradients(module):
        with _inputs_rounded(quantized, False):
            losses = job.learn(units, "weights")
        if learns_scales:
            with _inputs_rounded(quantized, True):
                losses = job.learn(units, "scales")
    return losses


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

    def learn(self, units: Sequence[Unit], what: str) -> dict[str, float]:
        """Has all units learn their "weights" or "scales", or takes what an earlier run learned."""
        stored = {unit.name: self.stages.load(f"{what}.{unit.name}") for unit in units}
        sweep = Sweep(
            self.module,
            units,
            self.quantized,
            self.samples,
            chunk=self.rounding.batch,
            memory_bytes=self.memory_bytes,
            seed=self.seed,
        )
        losses = {}
        with sweep:
            for done, unit in enumerate(units):
                self.progress(f"reconstructing {what}", done, len(units))
                found = stored[unit.name]
                loss = self._learned(sweep, unit, what) if found is None else self._restored(unit, found)
                if loss is not None:
                    losses[unit.name] = loss
                sweep.finish(unit)
        self.progress(f"reconstructing {what}", len(units), len(units))
        return losses

    def _learned(self, sweep: Sweep, unit: Unit, what: str) -> float | None:
        started, floats = time.monotonic(), quantizable_layers(self.module)
        try:
            stacks = sweep.capture(unit)
        except NotByRows as error:
            log.warning("%s stays as it is, not reconstructed: %s", unit.name, error)
            return None
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
            loss = learn(self.rounding)
        self.stages.save(f"{what}.{unit.name}", self._tensors(unit, loss, what), time.monotonic() - started)
        return loss

    def _parts(self, unit: Unit) -> Iterator[tuple[str, QuantizedLayer]]:
        for name in unit.layers:
            for index, part in enumerate(parts_of(self.quantized[name])):
                yield f"{name}.{index}", part

    def _tensors(self, unit: Unit, loss: float, what: str) -> dict[str, Tensor]:
        tensors = {"loss": torch.tensor(loss, dtype=torch.float64)}
        for name, part in self._parts(unit):
            tensors[f"integers.{name}"] = part.integers
            if what == "scales" and part.input_scale is not None:
                tensors[f"input_scale.{name}"] = part.input_scale
        return tensors

    def _restored(self, unit: Unit, stored: Mapping[str, Tensor]) -> float:
        for name, part in self._parts(unit):
            part.integers = stored[f"integers.{name}"].to(part.integers.device)
            if f"input_scale.{name}" in stored:
                part.input_scale = stored[f"input_scale.{name}"].to(part.integers.device)
        return float(stored["loss"])


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
