"""Reconstruction of temporal layers: TIAR against its equations written out in loops, and what each way promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quant.backends.call import Call
from quant.clock import MomentHolder
from quant.errors import QuantError
from quant.grid import from_integers, integer_range
from quant.layers import QuantizedLinear, bind, replace_layers
from quant.recipe import Temporal
from quant.temporal.finite import FiniteSet
from quant.temporal.layers import StepwiseLinear
from quant.temporal.tiar import Reconstruction, TibResult, reconstruct_tib
from tests.quant.temporal.tib import SCHEDULE, STEPS, Denoiser, empty_layers, make_call, make_denoiser, make_program

Matrix = list[list[float]]


def rebuilt(
    module: Denoiser, settings: Temporal, bits: int | None = 8, slots: int = STEPS, seed: int = 0
) -> tuple[TibResult, dict[str, QuantizedLinear]]:
    call = make_call(SCHEDULE)
    program = make_program(module, call)
    layers = empty_layers(program, bits, slots)
    return reconstruct_tib(program, layers, [call], settings, seed=seed), layers


def weight_of(module: Denoiser, name: str) -> Tensor:
    return module.get_parameter(f"{name}.weight")


class Literal:
    """TIAR in plain numbers and loops: one V for each weight, gradients by differences, Adam by its equations."""

    def __init__(self, module: Denoiser, settings: Temporal, scales: dict[str, Tensor]) -> None:
        self.iterations, self.low, self.high = settings.iterations, *integer_range(settings.bits)
        layers = {name: layer for name, layer in module.named_modules() if name in scales}
        self.names = list(scales)
        self.weight = {name: layer.weight.double().tolist() for name, layer in layers.items()}
        self.bias = {name: layer.bias.double().tolist() for name, layer in layers.items()}
        self.scale = {name: scales[name].double().tolist() for name in self.names}
        self.v = {
            name: [[self.start(name, i, w) for w in row] for i, row in enumerate(self.weight[name])]
            for name in self.names
        }
        self.first = dict.fromkeys(self.places(), 0.0)
        self.second = dict(self.first)

    def places(self) -> list[tuple[str, int, int]]:
        return [(n, i, j) for n in self.names for i, row in enumerate(self.weight[n]) for j in range(len(row))]

    def start(self, name: str, row: int, weight: float) -> float:
        rest = weight / self.scale[name][row] - math.floor(weight / self.scale[name][row])
        return -math.log(1.2 / (rest + 0.1) - 1)

    def h(self, v: float) -> float:
        return min(1.0, max(0.0, 1.2 / (1 + math.exp(-v)) - 0.1))

    def rounded(self, name: str) -> Matrix:
        whole: Matrix = []
        for i, row in enumerate(self.weight[name]):
            scale = self.scale[name][i]
            integers = [math.floor(w / scale) + self.h(self.v[name][i][j]) for j, w in enumerate(row)]
            whole.append([scale * min(self.high, max(self.low, integer)) for integer in integers])
        return whole

    def features(self, t: float, weights: dict[str, Matrix]) -> list[list[float]]:
        def linear(name: str, x: list[float]) -> list[float]:
            return [
                sum(w * y for w, y in zip(row, x, strict=True)) + b
                for row, b in zip(weights[name], self.bias[name], strict=True)
            ]

        def silu(x: list[float]) -> list[float]:
            return [y / (1 + math.exp(-y)) for y in x]

        angles = [t * 10.0**-i / 10 for i in range(4)]
        embedding = linear("linear_1", [math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        embedding = linear("linear_2", silu(embedding))
        return [linear(name, silu(embedding)) for name in self.names if name.startswith("consumers")]

    def loss(self, times: list[float]) -> float:
        """sum_i mean_batch sum_dim1 |g_i(h(t)) - g^_i(h^(t))|^2."""
        weights = {name: self.rounded(name) for name in self.names}
        total = 0.0
        for t in times:
            for exact, quantized in zip(self.features(t, self.weight), self.features(t, weights), strict=True):
                total += sum((one - other) ** 2 for one, other in zip(exact, quantized, strict=True)) / len(times)
        return total

    def regularizer(self, iteration: int) -> float:
        """0.01 sum(1 - |2h - 1|^beta), beta from 20 to 2 after a fifth of the iterations."""
        warm = 0.2 * self.iterations
        if iteration < warm:
            return 0.0
        beta = 20 - 18 * (iteration - warm) / (self.iterations - warm)
        left: float = sum(1 - abs(2 * self.h(self.v[n][i][j]) - 1) ** beta for n, i, j in self.places())
        return 0.01 * left

    def step(self, iteration: int, times: list[float]) -> None:
        slopes = {}
        for name, i, j in self.places():
            before, losses = self.v[name][i][j], []
            for change in (1e-5, -1e-5):
                self.v[name][i][j] = before + change
                losses.append(self.loss(times) + self.regularizer(iteration))
            self.v[name][i][j] = before
            slopes[name, i, j] = (losses[0] - losses[1]) / 2e-5
        for (name, i, j), slope in slopes.items():
            self.first[name, i, j] = first = 0.9 * self.first[name, i, j] + 0.1 * slope
            self.second[name, i, j] = second = 0.999 * self.second[name, i, j] + 0.001 * slope**2
            root = math.sqrt(second / (1 - 0.999**iteration)) + 1e-8
            self.v[name][i][j] -= 1e-3 * first / (1 - 0.9**iteration) / root


def test_loss_regularizer_and_update_are_those_of_the_equations() -> None:
    module, times = make_denoiser(3, 4, (2, 3)), torch.tensor([900.0, 400.0, 30.0])
    call = make_call(times)
    program = make_program(module, call)
    settings = Temporal(bits=3, rounding="adaround", iterations=10)
    job = Reconstruction(program, empty_layers(program, 8, 3), FiniteSet.of([call]), settings)
    soft, literal = job.soft(), Literal(module, settings, job.scales)
    starts = [weight.detach().clone() for weight in soft.weights]
    exact = program.run(call)
    for iteration in range(1, 8):  # the warm-up ends at the second
        loss = job.loss(soft, torch.arange(3), exact)
        assert float(loss.detach()) == pytest.approx(literal.loss(times.tolist()), rel=1e-3, abs=1e-6)
        loss.backward()  # type: ignore[no-untyped-call]
        soft.step(iteration)
        literal.step(iteration, times.tolist())
    for name, weight, start in zip(literal.names, soft.weights, starts, strict=True):
        expected = torch.tensor(literal.rounded(name)) - start
        assert float(expected.abs().max()) > 1e-4
        assert torch.allclose(weight.detach() - start, expected, rtol=0.03, atol=2e-6), name


def test_learning_rounds_so_that_features_are_kept() -> None:
    module = make_denoiser(1)
    nearest, _ = rebuilt(module, Temporal(bits=4, rounding="nearest"))
    learned, layers = rebuilt(module, Temporal(bits=4, rounding="adaround", iterations=600))
    assert learned.loss < 0.6 * nearest.loss
    for name, layer in layers.items():  # up or down, never further, but for what lies beyond the grid
        places = weight_of(module, name) / layer.scales[:, None]
        low, high = integer_range(4)
        assert float((layer.integers - places.clamp(low, high)).abs().max()) < 1.0 + 1e-5


@pytest.mark.parametrize("bits", [None, 8])
def test_closed_form_beats_nearest(bits: int | None) -> None:
    for seed in range(6):
        module = make_denoiser(seed)
        nearest, _ = rebuilt(module, Temporal(bits=4, rounding="nearest"), bits)
        closed, _ = rebuilt(module, Temporal(bits=4, rounding="closed"), bits)
        for name, exact in closed.exact.items():
            assert (closed.quantized[name] - exact).norm() < (nearest.quantized[name] - exact).norm()
        assert closed.loss < 0.2 * nearest.loss


def test_a_grid_for_each_step_beats_one_for_all() -> None:
    module = make_denoiser(0)
    settings = Temporal(bits=8, rounding="nearest")
    each, layers = rebuilt(module, settings, bits=4)
    one, plain = rebuilt(module, settings, bits=4, slots=0)
    assert each.loss < one.loss
    stepwise = layers["linear_2"]
    assert isinstance(stepwise, StepwiseLinear) and stepwise.input_scale is not None
    assert len(set(stepwise.input_scale.tolist())) == STEPS
    assert plain["linear_2"].input_scale is not None and plain["linear_2"].input_scale.ndim == 0


def test_results_are_those_of_the_layers_in_the_model() -> None:
    """What is reported is what the filled layers put out where they will stand."""
    module, call = make_denoiser(2), make_call(SCHEDULE)
    result, layers = rebuilt(module, Temporal(bits=4, rounding="closed"))
    program = make_program(module, call)
    for name, feature in program.run(call).items():
        assert torch.equal(result.exact[name][:, 0], feature)
    replace_layers(module, layers)
    finite = FiniteSet.of([call])
    bind(module, MomentHolder())
    for name, feature in program.run(call, moment=finite.moment).items():
        assert torch.equal(result.quantized[name][:, 0], feature)


@pytest.mark.parametrize("rounding", ["nearest", "closed", "adaround"])
def test_equal_seeds_give_equal_layers(rounding: str) -> None:
    settings = Temporal(bits=4, rounding=rounding, iterations=20)
    module, call = make_denoiser(0), make_call(torch.linspace(990.0, 10.0, 40))  # more rows than a batch
    program = make_program(module, call)

    def weights(seed: int) -> dict[str, Tensor]:
        layers = empty_layers(program, 8, 40)
        reconstruct_tib(program, layers, [call], settings, seed=seed)
        return {f"{name} {key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}

    first, again = weights(0), weights(0)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_pooled_texts_belong_to_the_finite_set() -> None:
    module, pooled = make_denoiser(0, pooled=5), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    calls: list[Call] = [make_call(t.expand(4), pooled) for t in SCHEDULE]
    program = make_program(module, calls[0])
    layers = empty_layers(program)
    assert "text" in layers
    result = reconstruct_tib(program, layers, calls, Temporal(bits=4, rounding="closed"), seed=0)
    for name, exact in result.exact.items():
        assert exact.shape[:2] == (STEPS, 4)
        for slot, call in enumerate(calls):
            assert torch.allclose(exact[slot], program.run(call)[name], atol=1e-5)
        assert float((result.quantized[name] - exact).norm() / exact.norm()) < 0.02


def test_layers_that_are_not_to_be_quantized_stay_float() -> None:
    module, call = make_denoiser(0), make_call(SCHEDULE)
    program = make_program(module, call)
    layers = {name: layer for name, layer in empty_layers(program).items() if name == "consumers.1"}
    result = reconstruct_tib(program, layers, [call], Temporal(bits=4), seed=0)
    assert torch.equal(result.exact["consumers.0"], result.quantized["consumers.0"])
    assert not torch.equal(result.exact["consumers.1"], result.quantized["consumers.1"])
    assert torch.equal(module.linear_1.weight, make_denoiser(0).linear_1.weight)


@pytest.mark.parametrize("rounding", ["closed", "adaround"])
def test_a_layer_that_runs_twice_is_fitted_to_both(rounding: str) -> None:
    module = make_denoiser(0)
    module.again = True
    nearest, _ = rebuilt(module, Temporal(bits=4, rounding="nearest"))
    result, _ = rebuilt(module, Temporal(bits=4, rounding=rounding, iterations=500))
    assert "consumers.2#2" in result.exact
    for name in ("consumers.2", "consumers.2#2"):
        exact = result.exact[name]
        assert (result.quantized[name] - exact).norm() < 0.9 * (nearest.quantized[name] - exact).norm()


def test_the_float_model_gets_no_gradients() -> None:
    module, call = make_denoiser(0).requires_grad_(True), make_call(SCHEDULE)
    program = make_program(module, call)
    layers = {name: layer for name, layer in empty_layers(program).items() if name != "linear_2"}
    reconstruct_tib(program, layers, [call], Temporal(bits=4, rounding="adaround", iterations=3), seed=0)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(buffer.requires_grad for layer in layers.values() for buffer in layer.buffers())


@pytest.mark.parametrize("rounding", ["closed", "adaround"])
def test_models_in_half_precision_are_reconstructed(rounding: str) -> None:
    module, call = make_denoiser(0).bfloat16(), make_call(SCHEDULE)
    call = Call({**call.rows, "sample": call.rows["sample"].bfloat16()}, call.clock, roles=call.roles)
    program = make_program(module, call)
    settings = Temporal(bits=4, rounding=rounding, iterations=300)
    result = reconstruct_tib(program, empty_layers(program), [call], settings, seed=0)
    for name, exact in result.exact.items():
        assert float((result.quantized[name] - exact).norm() / exact.norm()) < 0.08


def test_progress_is_told() -> None:
    module, call = make_denoiser(0), make_call(SCHEDULE)
    program = make_program(module, call)
    heard: list[tuple[str, int, int]] = []
    settings = Temporal(bits=4, rounding="adaround", iterations=120)
    reconstruct_tib(program, empty_layers(program), [call], settings, seed=0, progress=lambda *one: heard.append(one))
    assert [done for _, done, total in heard if total == 120] == [50, 100, 120]


def test_what_cannot_be_reconstructed_is_refused() -> None:
    module, call = make_denoiser(0), make_call(SCHEDULE)
    program = make_program(module, call)
    strange = {"mix": empty_layers(program)["linear_2"]}
    with pytest.raises(QuantError, match="mix is no temporal layer"):
        reconstruct_tib(program, strange, [call], Temporal(), seed=0)
    with pytest.raises(ValueError, match="equally many rows"):
        reconstruct_tib(program, {}, [], Temporal(), seed=0)
    module.linear_2.weight[0, 0] = math.nan
    with pytest.raises(QuantError, match="NaN or infinity"):
        reconstruct_tib(program, empty_layers(program), [call], Temporal(), seed=0)


def test_integers_stand_for_weights_near_those_of_the_model() -> None:
    _, layers = rebuilt(make_denoiser(0), Temporal(bits=8, rounding="closed"))
    for name, layer in layers.items():
        weight = weight_of(make_denoiser(0), name)
        assert float((from_integers(layer.integers, layer.scales) - weight).norm() / weight.norm()) < 0.1
