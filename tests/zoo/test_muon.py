"""Muon: orthogonal updates of matrices, Adam for the rest, states that resume, and a model that learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.train.muon import Muon, MuonAndAdam, orthogonal


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))


def loss_of(learner: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(16, 3, 6, 6, generator=generator)
    return functional.mse_loss(learner(batch), batch[:, 0, :2, :2].flatten(1))


def learn(learner: nn.Module, teacher: MuonAndAdam, steps: int) -> float:
    for _ in range(steps):
        loss = loss_of(learner)
        teacher.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        teacher.step()
    return loss_of(learner).item()


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(matrix)
    values = torch.linalg.svdvals(made)
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert functional.cosine_similarity(made.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_a_first_step_has_the_size_of_adams() -> None:
    weight = nn.Parameter(torch.zeros(32, 16, 3, 3))
    teacher = Muon([weight], lr=0.01, weight_decay=0)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    teacher.step()
    assert weight.pow(2).mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)


def test_vectors_and_ends_are_adams() -> None:
    groups = MuonAndAdam(model(), 0.01, ("0", "4")).param_groups
    assert [[tuple(weight.shape) for weight in group["params"]] for group in groups] == [
        [(8, 8, 3, 3)],
        [(8, 3, 3, 3), (8,), (8,), (4, 32), (4,)],
    ]


def test_it_learns_and_goes_on_from_its_state_as_if_never_stopped() -> None:
    learner = model()
    teacher = MuonAndAdam(learner, 0.01, ())
    before = loss_of(learner).item()
    assert learn(learner, teacher, 20) < before / 2
    other = copy.deepcopy(learner)
    resumed = MuonAndAdam(other, 0.5, ())
    resumed.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert learn(other, resumed, 3) == learn(learner, teacher, 3)
