"""The judge: by hand on small numbers, nothing to lose in float, grids by slot and token, sums over layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.recipe import Activations, Scheme, Weights
from quant.rotation.channels import Channels
from quant.rotation.greedy import Blocks
from quant.rotation.hadamard import hadamard
from quant.rotation.judge import MOST_ROWS, Fed, Judge
from quant.rotation.transform import InputTransform


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fed(x: Tensor, *readers: tuple[Tensor, Scheme]) -> Fed:
    return Fed.of(Channels(x.abs().amax(0)[None], {0: x}), readers)


def scheme(weights: int = 8, **inputs: object) -> Scheme:
    return Scheme(weights=Weights(bits=weights), activations=Activations.model_validate({"range": "minmax"} | inputs))


def test_the_error_is_that_of_the_rounded_output() -> None:
    # 4 bits from 0 to 15 have steps of 1; weights of largest 7 have steps of 1
    x, weight = torch.tensor([[0.0, 15.0], [2.4, 7.6]]), torch.tensor([[7.0, 3.2]])
    rounded_x, rounded_weight = torch.tensor([[0.0, 15.0], [2.0, 8.0]]), torch.tensor([[7.0, 3.0]])
    truth = x @ weight.T
    expected = (rounded_x @ rounded_weight.T - truth).square().sum() / truth.square().sum()
    found = Judge([fed(x, (weight, scheme(4, bits=4)))]).error(None)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_float_inputs_lose_nothing() -> None:
    x, weight = random(9, 4), torch.tensor([[127.0, -3.0, 0.0, 55.0]])
    assert Judge([fed(x, (weight, scheme(8, bits=32)))]).error(None) < 1e-12


def test_errors_of_layers_add_up() -> None:
    x, other = random(9, 8), random(7, 8, seed=1)
    one, two = (random(5, 8, seed=2), scheme(4)), (random(3, 8, seed=3), scheme(8, bits=4))
    alone = sum(Judge([part]).error(None) for part in (fed(x, one), fed(x, two), fed(other, one)))
    assert Judge([fed(x, one, two), fed(other, one)]).error(None) == pytest.approx(alone)


def test_convolutions_count_as_a_linear_for_each_place() -> None:
    x, weight = random(9, 8), random(4, 8, 3, 3, seed=1)
    places = weight.permute(0, 2, 3, 1).reshape(-1, 8)
    by_place = Judge([fed(x, (places, scheme(8, bits=4)))]).error(None)
    whole = Judge([fed(x, (weight, scheme(8, bits=4)))]).error(None)
    assert whole == pytest.approx(by_place, rel=0.05), "but for the scales, one for each output channel"


def test_each_slot_has_a_grid_where_scales_follow_steps() -> None:
    x, weight = random(8, 4), (random(3, 4, seed=1), scheme(8, bits=4, steps="each"))
    channels = Channels(torch.ones(2, 4), {0: x, 1: 100 * x})
    together = Judge([Fed.of(channels, [(weight[0], scheme(8, bits=4))])])
    apart = Judge([Fed.of(channels, [weight])])
    assert apart.error(None) == pytest.approx(Judge([fed(100 * x, weight)]).error(None), rel=0.01)
    assert together.error(None) != pytest.approx(apart.error(None), rel=1e-6)


@pytest.mark.parametrize("zero_point", ["shared", "token"])
def test_each_token_has_a_grid_where_it_comes_so(zero_point: str) -> None:
    loud = torch.cat([random(8, 4), 1000 * random(8, 4, seed=2)])
    weight, by_token = random(3, 4, seed=1), scheme(8, grain="token", zero_point=zero_point)
    quiet_alone = Judge([fed(loud[:8], (weight, by_token))])
    assert quiet_alone.error(None) < 1e-4
    assert Judge([fed(loud, (weight, by_token))]).error(None) < 1e-4


def test_outliers_are_judged_better_rotated_and_smoothed() -> None:
    x = random(64, 16)
    x[:, 3] *= 50
    judge = Judge([fed(x, (random(8, 16, seed=1), scheme(8, bits=4)))])
    rotated = InputTransform(16, blocks=Blocks(hadamard(16, 0)), randomized=True)
    smoothed = InputTransform(16, x.abs().amax(0).sqrt())
    plain = judge.error(None)
    assert judge.error(InputTransform(16)) == plain
    assert judge.error(rotated) < 0.7 * plain
    assert judge.error(smoothed) < 0.8 * plain


def test_clipping_is_tried_where_the_recipe_clips() -> None:
    x = random(64, 16)
    x[0, 0] = 40
    weight = random(8, 16, seed=1)
    clipped = Judge([fed(x, (weight, scheme(8, bits=4, range="mse")))])
    assert clipped.error(None) <= Judge([fed(x, (weight, scheme(8, bits=4)))]).error(None)


def test_no_more_than_so_many_samples_are_taken_from_all_slots() -> None:
    channels = Channels(torch.ones(30, 2), {slot: torch.full((64, 2), float(slot)) for slot in range(30)})
    taken = Fed.of(channels, [])
    assert len(taken.rows) <= MOST_ROWS
    assert set(taken.slots.tolist()) == set(range(30))
    assert torch.equal(taken.rows[:, 0], taken.slots.float())
