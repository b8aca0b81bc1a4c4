"""Which steps skip their unconditional pass, and what stands in for it: small algebra on inner products of differences.

Reusing the last difference between branches is FasterCache's (Lv et al., ICLR 2025, "CFG-Cache", without its frequency
split) and, at a gain of 0, the guidance interval (Kynkaanniemi et al., NeurIPS 2024). Ours: which steps skip is chosen
by exact dynamic programming; weights of up to three kept differences are least-squares solutions; and a step that runs
both branches takes back what the skipped ones before it got wrong, since it then knows what they should have been.

A difference is d_k = c_k - u_k, conditional less unconditional output. A plan uses w_k, a weighted sum of kept ones, in
its place; the error w_k - d_k moves the latents after step q by `response[q, k]` times itself, nearly, and so every
deviation is a sum of recorded differences, whose size their inner products tell. Must not know pipelines or models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.guidance.plan import KEPT

Matrix = NDArray[np.float64]
Weights = tuple[tuple[float, ...], ...]
"""Of kept differences, the newest first, for each step."""

RIDGE = 1e-4
"""Weights are paid for as if each difference were known to a hundredth of its size: no great numbers that cancel."""

LONGEST = 32
"""Steps that one difference may stand in for; bounds the search on long schedules."""

SEEN = 2
"""Kept differences that the search looks back at; the weights of a chosen plan look back at all that are kept."""


@dataclass(frozen=True)
class Dynamics:
    """How differences go over steps, and what wrong ones do to the latents. N steps.

    Attributes:
        gram: [N, N] inner products of differences, relative to the final latents' squared norm; mean over pictures.
        response: [N, N] lower triangular; an error e of the difference at step k moves the latents after step q by
            response[q, k] e, as far as that goes in the direction of e.
        stray: [N] what a deviation of the latents after step q adds in other directions one step later, by its size.
        final: [N] size of the final latents' deviation for a deviation of size 1 after step q.
    """

    gram: Matrix
    response: Matrix
    stray: Matrix
    final: Matrix

    @property
    def steps(self) -> int:
        """N."""
        return len(self.final)

    def size(self, mixture: Matrix) -> float:
        """Norm of a sum of differences, given as the number [N] of each."""
        return math.sqrt(max(0.0, float(mixture @ self.gram @ mixture)))


@dataclass(frozen=True)
class Choice:
    """Which steps run both branches, and the relative error of the final latents that is expected of it."""

    runs: tuple[bool, ...]
    error: float

    @property
    def skipped(self) -> int:
        """How many steps run one branch alone."""
        return self.runs.count(False)


class _Reached(NamedTuple):
    """Squared error so far, and which steps ran both branches."""

    cost: float
    path: tuple[int, ...]


class _Walk:
    """Deviations of the latents while steps are walked through in order, as sums of differences."""

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics
        self._errors = np.zeros((dynamics.steps, dynamics.steps))

    def weights(self, step: int, kept: Sequence[int]) -> Matrix:
        """Of the kept differences, by their steps: those that bring the latents after the step nearest to the truth."""
        response = self._dynamics.response[step]
        wanted = _one(step, self._dynamics.steps)
        if response[step]:
            wanted = wanted - response[:step] @ self._errors[:step] / response[step]
        return least_squares(self._dynamics.gram, kept, wanted)

    def deviation(self, step: int, kept: Sequence[int], weights: Matrix, *, enter: bool = True) -> float:
        """Size of the latents' deviation after a step with these weights; the step is entered, or only tried."""
        error = -_one(step, self._dynamics.steps)
        np.add.at(error, list(kept), weights)
        response = self._dynamics.response[step]
        if enter:
            self._errors[step] = error
        return self._dynamics.size(response[:step] @ self._errors[:step] + response[step] * error)


def least_squares(gram: Matrix, kept: Sequence[int], wanted: Matrix) -> Matrix:
    """Weights [K] of vectors whose weighted sum is nearest to a mixture; all are told by inner products [V, V].

    `kept` are the places of the K vectors, `wanted` [V] is the mixture.
    """
    if not kept:
        return np.zeros(0)
    places = list(kept)
    inner = gram[np.ix_(places, places)]
    weighted = inner + RIDGE * np.diag(inner.diagonal()) + np.finfo(float).tiny * np.eye(len(places))
    return np.asarray(np.linalg.solve(weighted, gram[places] @ wanted), dtype=np.float64)


def best_choices(dynamics: Dynamics) -> dict[int, Choice]:
    """The choice of least expected error for each number of skipped passes that there is a choice for.

    Exact over (step, last step that ran both branches, the one before, number skipped), where the squared error is a
    sum over the stretches between steps that run both: what is left after the step that ends a stretch, and what the
    deviations inside it stirred up that cannot be taken back.
    """
    count = dynamics.steps
    states: list[dict[tuple[int, int], _Reached]] = [{} for _ in range(count + 1)]  # by (step before, skipped so far)
    for last in range(-1, count):
        reached = states[last] if last >= 0 else {(-1, 0): _Reached(0.0, ())}
        costs: dict[int, list[tuple[int, float]]] = {}
        for (before, skipped), so_far in reached.items():
            if before not in costs:
                kept = [step for step in (last, before)[:SEEN] if step >= 0]
                costs[before] = list(_stretches(dynamics, kept, last))
            for upto, cost in costs[before]:
                path = so_far.path if upto == count else (*so_far.path, upto)
                key, total = (last, skipped + upto - last - 1), so_far.cost + cost
                if key not in states[upto] or total < states[upto][key].cost:
                    states[upto][key] = _Reached(total, path)
    best: dict[int, _Reached] = {}
    for (_, skipped), end in states[count].items():
        if skipped not in best or end.cost < best[skipped].cost:
            best[skipped] = end
    return {
        skipped: Choice(tuple(step in end.path for step in range(count)), math.sqrt(end.cost))
        for skipped, end in sorted(best.items())
    }


def _stretches(dynamics: Dynamics, kept: list[int], last: int) -> Iterator[tuple[int, float]]:
    """Squared error that each stretch after step `last` leaves, by the step that runs both branches and ends it; the
    number of steps stands for the end of the schedule.
    """
    walk, count = _Walk(dynamics), dynamics.steps
    stirred, left = 0.0, 0.0
    for step in range(last + 1, min(count, last + 2 + LONGEST)):
        own = [step, *kept]
        left_here = walk.deviation(step, own, walk.weights(step, own), enter=False)
        yield step, (dynamics.final[step] * left_here) ** 2 + stirred**2
        left = walk.deviation(step, kept, walk.weights(step, kept))
        if step + 1 < count:
            stirred += dynamics.stray[step] * left * dynamics.final[step + 1]
    if last + 1 + LONGEST >= count - 1:
        yield count, (dynamics.final[-1] * left) ** 2 + stirred**2 if last + 1 < count else 0.0


def weights_of(dynamics: Dynamics, runs: Sequence[bool]) -> Weights:
    """The weights for a choice of steps, as far as recorded differences tell them: of a run with full guidance."""
    walk, found = _Walk(dynamics), []
    for step, kept in enumerate(kept_steps(runs)):
        weights = _one(0, len(kept)) if all(runs[: step + 1]) else walk.weights(step, kept)
        walk.deviation(step, kept, weights)
        found.append(tuple(weights.tolist()))
    return tuple(found)


def corrected(dynamics: Dynamics, runs: Sequence[bool], weights: Weights, measured: Matrix) -> Weights:
    """Weights that take back the deviations that a run with `weights` had.

    Args:
        dynamics: of full guidance; its responses are used.
        runs: which steps run both branches.
        weights: to be changed.
        measured: [2 N, 2 N] inner products of the run's own latents' deviations after each step, and of its
            differences at each step (zero where only one branch ran).
    """
    count = dynamics.steps
    found, changes = [], np.zeros((count, 2 * count))
    for step, kept in enumerate(kept_steps(runs)):
        response = dynamics.response[step]
        if all(runs[: step + 1]) or not kept or not response[step]:
            found.append(weights[step])
            continue
        places = [count + one for one in kept]
        left = _one(step, 2 * count) + response[:step] @ changes[:step]
        change = least_squares(measured, places, -left / response[step])
        changes[step, places] = change
        found.append(tuple((np.array(weights[step]) + change).tolist()))
    return tuple(found)


def influences(dynamics: Dynamics, runs: Sequence[bool], weights: Sequence[Sequence[float]]) -> Matrix:
    """[N] relative error of the final latents for an error of size 1 of each step's difference, wherever it is used."""
    moved = np.zeros(dynamics.steps)
    for step, kept in enumerate(kept_steps(runs)):
        effect = float(dynamics.response[step, step] * dynamics.final[step])
        for place, weight in zip(kept, weights[step], strict=False):
            moved[place] += weight * effect
    return np.abs(moved)


def kept_steps(runs: Sequence[bool]) -> list[list[int]]:
    """For each step, at which steps the differences that are kept by then were computed; the newest first."""
    found: list[list[int]] = []
    kept: list[int] = []
    for step, ran in enumerate(runs):
        kept = [step, *kept][:KEPT] if ran else kept
        found.append(kept)
    return found


def _one(place: int, length: int) -> Matrix:
    vector = np.zeros(length)
    vector[place] = 1
    return vector
