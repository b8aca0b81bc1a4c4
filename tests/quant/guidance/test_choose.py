"""The choice of steps against brute force and against simulations of a linear sampler, where the algebra is exact."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from quant.errors import CalibrationError
from quant.guidance import choose
from quant.guidance.choose import Dynamics, Matrix, best_choices, corrected, influences, kept_steps, weights_of
from quant.guidance.record import Responses, inner_products, norms

STEPS, WIDTH = 9, 40


class Sampler:
    """x_{q+1} = a_q x_q + b_q d'_q: what a difference d' does to latents when the model answers all x alike."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.decay, self.effect = rng.uniform(0.8, 1.1, STEPS), -rng.uniform(0.2, 0.6, STEPS)
        slow = rng.normal(
            size=(3, WIDTH)
        )  # differences move slowly in a space of few dimensions, and a little beside it
        phases = np.stack([np.ones(STEPS), np.linspace(1, 0.2, STEPS), np.linspace(0, 1, STEPS) ** 2], axis=1)
        self.differences = phases @ slow + 0.004 * rng.normal(size=(STEPS, WIDTH))

    def run(self, used: Matrix) -> Matrix:
        """Latents after each step, [STEPS, WIDTH]."""
        x, found = np.ones(WIDTH), []
        for step in range(STEPS):
            x = self.decay[step] * x + self.effect[step] * used[step]
            found.append(x)
        return np.array(found)

    def used(self, runs: tuple[bool, ...], weights: choose.Weights) -> Matrix:
        rows = []
        for kept, own in zip(kept_steps(runs), weights, strict=True):
            rows.append(sum((w * self.differences[step] for w, step in zip(own, kept, strict=True)), np.zeros(WIDTH)))
        return np.array(rows)

    def deviations(self, runs: tuple[bool, ...], weights: choose.Weights) -> Matrix:
        return self.run(self.used(runs, weights)) - self.run(self.differences)

    def dynamics(self) -> Dynamics:
        size = float(np.linalg.norm(self.run(self.differences)[-1]))
        response = np.zeros((STEPS, STEPS))
        for step in range(STEPS):
            for later in range(step, STEPS):
                response[later, step] = self.effect[step] * np.prod(self.decay[step + 1 : later + 1])
        final = np.array([np.prod(self.decay[step + 1 :]) for step in range(STEPS)])
        gram = self.differences @ self.differences.T / size**2
        return Dynamics(gram, response, np.zeros(STEPS), final)

    def error(self, runs: tuple[bool, ...], weights: choose.Weights) -> float:
        size = np.linalg.norm(self.run(self.differences)[-1])
        return float(np.linalg.norm(self.deviations(runs, weights)[-1]) / size)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "RIDGE", 1e-12)


def test_the_first_steps_that_run_both_branches_are_left_alone() -> None:
    runs = (True,) * 4 + (False,) * 2 + (True,) + (False,) * 2
    weights = weights_of(Sampler().dynamics(), runs)
    assert [own[0] for own in weights[:4]] == [1.0] * 4 and not any(any(own[1:]) for own in weights[:4])
    assert [len(own) for own in weights] == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert weights[6][0] != 1.0, "it takes back what two steps got wrong"


def test_weights_are_the_least_squares_solutions_of_each_step() -> None:
    """Against a solver that is given the vectors themselves."""
    sampler, runs = Sampler(1), (True, True, False, False, True, False, True, False, False)
    weights = weights_of(sampler.dynamics(), runs)
    used, exact = sampler.used(runs, weights), sampler.differences
    for step in range(2, STEPS):
        before = np.array(used)
        before[step:] = exact[step:]
        before[step] = 0
        left = sampler.run(before)[step] - sampler.run(exact)[step]
        kept = sampler.differences[kept_steps(runs)[step]]
        best = np.linalg.lstsq(sampler.effect[step] * kept.T, -left, rcond=None)[0]
        np.testing.assert_allclose(weights[step], best, atol=1e-5)


def test_taking_back_beats_looking_ahead_alone() -> None:
    sampler, runs = Sampler(2), (True, False, False, True, False, False, False, True, True)
    weights = weights_of(sampler.dynamics(), runs)
    plain = tuple((1.0,) + (0.0,) * (len(own) - 1) if ran else own for ran, own in zip(runs, weights, strict=True))
    assert sampler.error(runs, weights) < 0.5 * sampler.error(runs, plain)


def test_choices_are_the_best_of_all_by_their_own_measure() -> None:
    """Every subset of steps, priced stretch by stretch with code of its own."""
    dynamics = Dynamics(**{**vars(Sampler(3).dynamics()), "stray": np.linspace(0.3, 0.05, STEPS)})
    found = best_choices(dynamics)
    assert set(found) == set(range(STEPS + 1))
    best: dict[int, float] = dict.fromkeys(range(STEPS + 1), float("inf"))
    for runs in product((True, False), repeat=STEPS):
        cost = priced(dynamics, runs)
        best[runs.count(False)] = min(cost, best[runs.count(False)])
    for skipped, choice in found.items():
        assert choice.skipped == skipped
        assert choice.error == pytest.approx(best[skipped] ** 0.5, rel=1e-4, abs=1e-7)
    errors = [found[skipped].error for skipped in range(STEPS + 1)]
    assert errors[0] == pytest.approx(0, abs=1e-6) and errors == sorted(errors)


def priced(dynamics: Dynamics, runs: tuple[bool, ...]) -> float:
    """Squared error by stretches: each begins without a deviation, and looks back at two differences."""
    cost, last, before = 0.0, -1, -1
    for end in [*[step for step in range(STEPS) if runs[step]], STEPS]:
        errors, stirred, size = np.zeros((STEPS, STEPS)), 0.0, 0.0
        for step in range(last + 1, min(end + 1, STEPS)):
            kept = [one for one in (step if step == end else -1, last, before) if one >= 0]
            wanted = np.eye(STEPS)[step]
            if step:
                wanted = wanted - dynamics.response[step, :step] @ errors[:step] / dynamics.response[step, step]
            used = np.zeros(STEPS)
            if kept:
                inner = dynamics.gram[np.ix_(kept, kept)]
                used[kept] = np.linalg.lstsq(inner, dynamics.gram[kept] @ wanted, rcond=1e-13)[0]
            errors[step] = used - np.eye(STEPS)[step]
            moved = dynamics.response[step, : step + 1] @ errors[: step + 1]
            size = max(0.0, float(moved @ dynamics.gram @ moved)) ** 0.5
            if step != end and step + 1 < STEPS:
                stirred += dynamics.stray[step] * size * dynamics.final[step + 1]
        cost += (dynamics.final[min(end, STEPS - 1)] * size) ** 2 + stirred**2
        last, before = end, last
    return cost


def test_a_run_with_wrong_weights_is_put_right() -> None:
    """Weights fitted to wrong dynamics: what one run of them shows is enough to mend them."""
    sampler, runs = Sampler(4), (True, False, True, False, False, True, False, False, True)
    exact = sampler.dynamics()
    growing = np.linspace(1, 1.5, STEPS)
    wrong = Dynamics(exact.gram * np.outer(growing, growing), exact.response, exact.stray, exact.final)
    weights = weights_of(wrong, runs)
    start = sampler.error(runs, weights)
    size = float(np.linalg.norm(sampler.run(sampler.differences)[-1]))
    shown = np.array([row if ran else 0 * row for ran, row in zip(runs, sampler.differences, strict=True)])
    vectors = np.concatenate([sampler.deviations(runs, weights), shown]) / size
    mended = corrected(exact, runs, weights, vectors @ vectors.T)
    assert sampler.error(runs, mended) < 0.3 * start
    assert sampler.error(runs, mended) == pytest.approx(sampler.error(runs, weights_of(exact, runs)), rel=0.05)


def test_influences_are_what_an_error_of_a_difference_does() -> None:
    sampler, runs = Sampler(5), (True, True, False, False, True, True, True, True, True)
    weights = weights_of(sampler.dynamics(), runs)
    told = influences(sampler.dynamics(), runs, weights)
    used = sampler.used(runs, weights)
    for step in (0, 1, 4):
        wrong = np.array(used)
        for place, (kept, own) in enumerate(zip(kept_steps(runs), weights, strict=True)):
            if step in kept:
                wrong[place] += own[kept.index(step)]
        moved = np.abs(sampler.run(wrong)[-1] - sampler.run(used)[-1]).max()
        assert told[step] == pytest.approx(moved, rel=1e-6)


def test_inner_products_and_responses_of_tensors() -> None:
    vectors = [torch.arange(12.0).reshape(2, 2, 3), torch.ones(2, 2, 3)]
    sizes = norms(vectors[1]) * torch.tensor([1.0, 2.0])
    expected = sum(
        np.array([[float((a[i] * b[i]).sum()) for b in vectors] for a in vectors]) / float(sizes[i]) ** 2
        for i in (0, 1)
    )
    np.testing.assert_allclose(inner_products(vectors, sizes), expected)
    responses = Responses(3)
    error = torch.tensor([[1.0, 0.0]])
    responses.add(1, error, [-0.5 * error, torch.tensor([[-0.4, 0.3]])])
    responses.add(2, error, [-2.0 * error])
    found = responses.dynamics(np.eye(3))
    np.testing.assert_allclose(found.response, [[-0.5, 0, 0], [-0.4, -0.5, 0], [-0.4, -0.4, -2.0]], atol=1e-6)
    np.testing.assert_allclose(found.stray, [0.6] * 3, atol=1e-6)
    np.testing.assert_allclose(found.final, [1.0, 1.0, 1.0], atol=1e-6)


def test_what_tells_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        inner_products([torch.full((1, 2), float("nan"))], torch.ones(1))
    with pytest.raises(CalibrationError, match="step 0 has no"):
        Responses(2).add(0, torch.ones(1, 2), [torch.zeros(1, 2)])
    with pytest.raises(CalibrationError, match="changes nothing"):
        Responses(2).dynamics(np.eye(2))
