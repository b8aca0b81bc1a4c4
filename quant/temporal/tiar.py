"""Temporal information-aware reconstruction: temporal layers rounded for their features, by no picture. Knows no model.

TIAR (Huang et al., TFMQ-DM, CVPR 2024, section 4.1). A temporal information block (TIB) is h, from the timestep to its
embedding, and g_1 .. g_n, from that to the feature of each consumer. All of it is rounded for what it puts out:

    L_TIAR = sum_i || g_i(h(t)) - g^_i(h^(t)) ||_F^2,    t over the finite set of timesteps

Three ways, by `recipe.Temporal.rounding`:

"adaround", as published. AdaRound over h and every g_i at once (`quant.rounding`), batches of 32 timesteps, Adam 1e-3,

    sum_i mean_batch( sum_dim1 |g_i - g^_i|^2 ) + 0.01 sum over all layers of sum( 1 - |2 h(V) - 1|^beta )

weights first, inputs float; then the inputs' grids (FSC, `quant.temporal.scales`), layer by layer on what the quantized
layers before it put out. Ours: the set holds every timestep of the schedule, with given constants and pooled text.

"closed", ours. One layer after the other in the order of the forward: the grids of its inputs first, on what the
quantized layers before it put out; then weights and bias that give, for those rounded inputs, the layer's outputs in
the float model (`quant.temporal.closed`: ridge regression, then GPTQ). Seconds instead of minutes.

"nearest": each weight by itself, then the inputs' grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.backends.call import Call
from quant.clock import MomentHolder
from quant.errors import CalibrationError, QuantError
from quant.grid import Affine, to_integers, weight_scales
from quant.layers import QuantizedLinear
from quant.recipe import Temporal
from quant.recipe_parts import Rounding
from quant.rounding import Grid, SoftRounding
from quant.temporal.closed import closed_form
from quant.temporal.finite import FiniteSet, take_timed
from quant.temporal.layers import StepwiseLinear
from quant.temporal.program import TemporalProgram
from quant.temporal.scales import finite_set_grids, round_set

BATCH = 32
_REPORTED = 50
"""Iterations between reports of progress."""

Progress = Callable[[str, int, int], object]
"""`progress(what, done, total)`."""
WHAT = "temporal layers"


@dataclass(frozen=True, slots=True)
class TibResult:
    """Temporal features before and after: name of each frontier output to [slots, samples, width] float32."""

    exact: Mapping[str, Tensor]
    quantized: Mapping[str, Tensor]

    @property
    def loss(self) -> float:
        """L_TIAR, as the mean over the finite set."""
        pairs = ((self.exact[name], self.quantized[name]) for name in self.exact)
        return sum(float((one - other).double().square().sum(2).mean()) for one, other in pairs)


def reconstruct_tib(
    program: TemporalProgram,
    quantized: Mapping[str, QuantizedLinear],
    calls: Sequence[Call],
    settings: Temporal,
    *,
    seed: int,
    progress: Progress = lambda what, done, total: None,
) -> TibResult:
    """Fills quantized temporal layers: integers, scales, biases, and grids of their inputs.

    Args:
        program: computes features with the float layers, which are not changed.
        quantized: name of each linear that is to be quantized to its layer on the CPU, empty: `StepwiseLinear` for
            a grid for each slot, `QuantizedLinear` with one grid or with float inputs. Others stay float.
        calls: the finite set: one call for each slot, all of as many rows (constants, pooled texts), or one call with a
            row for each slot.
        settings: bits, rounding, iterations.
        seed: of the batches.
        progress: hears of iterations or layers.

    Raises:
        QuantError: a layer's weight or input is not finite, it is no linear, or it never runs.
    """
    finite = FiniteSet.of(calls)
    job = Reconstruction(program, quantized, finite, settings)
    with torch.no_grad():
        exact = finite.by_slot(program.run(finite.call))
    if settings.rounding != "closed":
        job.set_weights(job.learned(seed, progress) if settings.rounding == "adaround" else job.nearest())
    with torch.no_grad(), job.bound():
        job.walk(progress)
        after = finite.by_slot(program.run(finite.call, job.quantized_leaf))
    return TibResult(exact, after)


class Reconstruction:
    """The reconstruction of one set of temporal layers: its parts, in the order in which they are needed."""

    def __init__(
        self,
        program: TemporalProgram,
        quantized: Mapping[str, QuantizedLinear],
        finite: FiniteSet,
        settings: Temporal,
    ) -> None:
        self.program, self.quantized, self.finite, self.settings = program, quantized, finite, settings
        layers = program.layers()
        self.linears = {name: _linear(name, layers.get(name)) for name in quantized}
        try:
            self.scales = {name: weight_scales(one.weight, settings.bits, "mse") for name, one in self.linears.items()}
        except ValueError as error:
            raise QuantError(f"a temporal layer cannot be rounded: {error}") from error
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in quantized}
        with torch.no_grad():
            program.run(finite.call, self._keeping)
        idle = [name for name, seen in self._inputs.items() if not seen]
        if idle:
            raise QuantError(f"temporal layers to be quantized never ran: {', '.join(idle[:5])}")

    def nearest(self) -> dict[str, Tensor]:
        """Integers of each layer, each rounded by itself."""
        bits = self.settings.bits
        return {name: to_integers(one.weight, self.scales[name], bits) for name, one in self.linears.items()}

    def learned(self, seed: int, progress: Progress) -> dict[str, Tensor]:
        """Integers of each layer by AdaRound of all of them at once."""
        soft = self.soft()
        generator = torch.Generator().manual_seed(seed)
        rows = self.finite.call.count
        with torch.no_grad():
            exact = self.program.run(self.finite.call)
        for iteration in range(1, self.settings.iterations + 1):
            index = torch.randperm(rows, generator=generator)[:BATCH] if rows > BATCH else torch.arange(rows)
            self.loss(soft, index, exact).backward(inputs=soft.weights)  # type: ignore[no-untyped-call]
            soft.step(iteration)
            if iteration % _REPORTED == 0 or iteration == self.settings.iterations:
                progress(WHAT, iteration, self.settings.iterations)
        return dict(zip(self.quantized, soft.integers(), strict=True))

    def soft(self) -> SoftRounding:
        """AdaRound's state for all layers, with the published numbers but for the iterations."""
        grids = [Grid(one.weight, self.scales[name], self.settings.bits) for name, one in self.linears.items()]
        return SoftRounding(grids, Rounding(iterations=self.settings.iterations))

    def loss(self, soft: SoftRounding, index: Tensor, exact: Mapping[str, Tensor]) -> Tensor:
        """sum_i mean_batch sum_dim1 |g_i - g^_i|^2 over some rows of the finite set."""
        weights = dict(zip(self.quantized, soft.weights, strict=True))

        def apply(name: str, leaf: nn.Module, *arguments: Any, **keywords: Any) -> Tensor:
            if name not in weights:
                return _as_is(leaf, arguments, keywords)
            x, bias = arguments[0], self.linears[name].bias
            return functional.linear(x.float(), weights[name], None if bias is None else bias.float()).to(x.dtype)

        with torch.enable_grad():
            outputs = self.program.run(take_timed(self.finite.call, index), apply)
            lost = [(output - exact[name][index]).float().flatten(1).square() for name, output in outputs.items()]
            return torch.stack([one.sum(1).mean() for one in lost]).sum()

    def set_weights(self, integers: Mapping[str, Tensor]) -> None:
        """Fills the layers' weights, with the float biases."""
        for name, layer in self.quantized.items():
            layer.set_weight(integers[name], self.scales[name], self.linears[name].bias)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Has the quantized layers read the finite set's moment."""
        holder = MomentHolder()
        for layer in self.quantized.values():
            layer.holder = holder
        holder.now = self.finite.moment
        try:
            yield
        finally:
            holder.now = None

    def walk(self, progress: Progress) -> None:
        """Runs the forward once; each layer is finished when it is reached, on what those before it then put out."""
        done: set[str] = set()

        def apply(name: str, leaf: nn.Module, *arguments: Any, **keywords: Any) -> Tensor:
            if name in self.quantized and name not in done:
                done.add(name)
                self._finish(name, arguments[0])
                progress(WHAT, len(done), len(self.quantized))
            return self.quantized_leaf(name, leaf, *arguments, **keywords)

        self.program.run(self.finite.call, apply)

    def quantized_leaf(self, name: str, leaf: nn.Module, *arguments: Any, **keywords: Any) -> Tensor:
        """What stands in a leaf's place, run in float32."""
        if name not in self.quantized:
            return _as_is(leaf, arguments, keywords)
        x: Tensor = arguments[0]
        return _as_is(self.quantized[name], (x.float(),), {}).to(x.dtype)

    def _finish(self, name: str, x: Tensor) -> None:
        """Grids of a layer's inputs, and its weights if they are rounded in closed form.

        A layer that runs more than once is fitted to its inputs in the float model: those of later runs are not there.
        """
        layer, linear, seen = self.quantized[name], self.linears[name], self._inputs[name]
        inputs = self._points(x) if len(seen) == 1 else torch.cat(seen, dim=1)
        try:
            rounded = _set_input_grid(layer, inputs).flatten(0, 1)
        except CalibrationError as error:
            raise QuantError(f"temporal layer {name}: {error}") from error
        if self.settings.rounding == "closed":
            bias = None if linear.bias is None else linear.bias.detach().float()
            exact = functional.linear(torch.cat(seen, dim=1).flatten(0, 1), linear.weight.detach().float(), bias)
            scales, weight = self.scales[name], linear.weight.detach()
            integers, fitted = closed_form(weight, bias, scales, self.settings.bits, rounded, exact)
            layer.set_weight(integers, scales, fitted)

    def _keeping(self, name: str, leaf: nn.Module, *arguments: Any, **keywords: Any) -> Tensor:
        if name in self._inputs:
            self._inputs[name].append(self._points(arguments[0]))
        return _as_is(leaf, arguments, keywords)

    def _points(self, x: Tensor) -> Tensor:
        """A layer's inputs as [slots, samples, in] float32."""
        return x.detach().float().reshape(self.finite.slots, -1, x.shape[-1])


def _linear(name: str, layer: nn.Module | None) -> nn.Linear:
    if not isinstance(layer, nn.Linear):
        found = "no temporal layer" if layer is None else f"a {type(layer).__name__}"
        raise QuantError(f"{name} is {found}: only temporal linears are quantized")
    return layer


def _as_is(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
    output: Tensor = layer(*arguments, **keywords)
    return output


def _set_input_grid(layer: QuantizedLinear, inputs: Tensor) -> Tensor:
    """Finds and sets the grids for inputs [slots, samples, in]; the inputs at their points."""
    if layer.input_scale is None:
        return inputs
    bits = layer.activation_high.bit_length()
    if isinstance(layer, StepwiseLinear):
        scales, zero_points = finite_set_grids(inputs, bits)
        layer.set_grids(scales, zero_points)
        return round_set(inputs.flatten(1), scales, zero_points, layer.activation_high).view_as(inputs)
    scales, zero_points = finite_set_grids(inputs.reshape(1, -1), bits)
    layer.set_grid(Affine(float(scales), int(zero_points), bits))
    return round_set(inputs.reshape(1, -1), scales, zero_points, layer.activation_high).view_as(inputs)
