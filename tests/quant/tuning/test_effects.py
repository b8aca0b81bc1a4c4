"""What formats are said to do to a finished picture is what they do: a sampler run with one layer rounded at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.backends.call import call_module
from quant.recipe import parse
from quant.tuning.effects import Direction, Effects, Meter, mean, of_rows
from quant.tuning.subject import Prepared, prepare

INFLUENCE = (0.5, -0.2, 0.3, 0.9)
SCHEDULE = (900.0, 500.0, 200.0, 10.0)


def call_at(step: int, seed: int, rows: tuple[int, ...] = (quant.UNCOND, quant.COND)) -> quant.Call:
    """A call of one picture at a step, a row for each branch."""
    generator = torch.Generator().manual_seed(100 * seed + step)
    samples = torch.randn(len(rows), 8, 6, 6, generator=generator)
    clock = quant.StepClock(
        torch.full((len(rows),), step), torch.full((len(rows),), len(SCHEDULE)), torch.tensor(rows, dtype=torch.int64)
    )
    times = torch.full((len(rows),), SCHEDULE[step])
    return quant.Call({"sample": samples, "time": times}, clock, constants={"scale": 1.0}, roles={"time": "time"})


def finished(answer: Callable[[quant.Call], Tensor], seed: int, guidance: float) -> Tensor:
    """The final latents of a sampler that adds up guided predictions, [1, 8, 6, 6]."""
    total = torch.zeros(1, 8, 6, 6)
    for step, share in enumerate(INFLUENCE):
        uncond, cond = torch.split(answer(call_at(step, seed)), 1)
        total = total + share * (uncond + guidance * (cond - uncond))
    return total


@pytest.fixture
def prepared(net: nn.Module) -> Prepared:
    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for seed in range(4):
            finished(answer, seed, 3.0)

    return prepare(net, parse('name = "base"', "tests"), quant.calibrate(net, run, by_time=True), ("static", "float"))


def measured(prepared: Prepared, net: nn.Module, pictures: int, guidance: float) -> Effects:
    meter = Meter(prepared.subject)
    for number in range(pictures):
        truth = finished(lambda call: call_module(net, call), number % 4, guidance)
        v = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(number))
        with meter.picture(Direction(v, INFLUENCE, guidance, float(truth.square().sum()))) as answer:
            finished(answer, number % 4, guidance)
    return mean(meter.effects)


def true_effect(net: nn.Module, name: str, instead: nn.Module) -> float:
    """Squared relative error of the final latents, mean over the pictures, with another layer in a layer's place."""
    other = copy.deepcopy(net)
    setattr(other, name, instead)
    errors = []
    for seed in range(4):
        truth = finished(lambda call: call_module(net, call), seed, 3.0)
        wrong = finished(lambda call: call_module(other, call), seed, 3.0)
        errors.append(float((wrong - truth).square().sum() / truth.square().sum()))
    return sum(errors) / len(errors)


def test_effects_are_those_on_the_finished_picture(net: nn.Module, prepared: Prepared) -> None:
    found = measured(prepared, net, 400, 3.0)
    for name in ("first", "down", "mix", "last"):
        for bits in (3, 4, 6):
            instead = copy.deepcopy(net.get_submodule(name))
            instead.weight.data = prepared.subject.widths[name][bits].weight
            true = true_effect(net, name, instead)
            assert found.weights[name][bits] ** 0.5 == pytest.approx(true**0.5, rel=0.3), (name, bits)
        true = true_effect(net, name, prepared.subject.inputs["static"][name])
        assert found.inputs[name]["static"] ** 0.5 == pytest.approx(true**0.5, rel=0.3), name


def test_errors_that_cancel_over_steps_cost_nothing(net: nn.Module, prepared: Prepared) -> None:
    """The last layer's bias-like error is the same at both steps: with opposite influence nothing is left of it."""
    subject = prepared.subject
    meter, alike = Meter(subject), (1.0, -1.0, 0.0, 0.0)
    v = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with meter.picture(Direction(v, alike, None, 1.0)) as answer:
        first = call_at(0, 0, (quant.COND,))
        again = quant.Call(first.rows, call_at(1, 0, (quant.COND,)).clock, constants=first.constants, roles=first.roles)
        answer(first)
        answer(again)
    assert max(meter.effects.weights["mix"].values()) < 1e-9
    assert not any(weight.requires_grad for weight in net.parameters())


def test_tables_move_what_reads_them() -> None:
    error = of_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert error(torch.tensor([1, 0]), torch.zeros(2, 2)).tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert error(torch.tensor([1]), torch.zeros(1, 5, 2)).shape == (1, 5, 2)
