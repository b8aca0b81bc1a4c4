"""Input transforms: exactly taken back by weights, the same for pixels and tokens, saved small, shared, refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from quant.rotation.greedy import Blocks, matrix
from quant.rotation.hadamard import hadamard
from quant.rotation.report import TransformForm
from quant.rotation.transform import InputTransform, Transformed

WIDTH = 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> Tensor:
    made: Tensor = torch.linalg.qr(random(size, size, seed=seed).double()).Q.float()
    return made


def make(axis: int = -1, *, what: str = "all") -> InputTransform:
    factors = torch.exp(random(WIDTH, seed=1)) if what in ("all", "factors") else None
    permutation = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(2))
    blocks = {
        "all": Blocks(orthogonal(8, 3), permutation, orthogonal(8, 4)),
        "first": Blocks(orthogonal(4, 3)),
        "signs": Blocks(hadamard(8, seed=5)),
    }.get(what)
    return InputTransform(WIDTH, factors, blocks, axis=axis, randomized=what == "signs")


@pytest.mark.parametrize("what", ["all", "factors", "first", "signs"])
def test_a_linear_takes_it_back(what: str) -> None:
    transform, layer = make(what=what), nn.Linear(WIDTH, 10)
    for x in (random(5, WIDTH), random(2, 7, WIDTH), random(2, 3, 4, WIDTH)):
        changed = nn.functional.linear(transform(x), transform.on_weight(layer.weight), layer.bias)
        assert transform(x).shape == x.shape
        assert torch.allclose(changed, layer(x), atol=3e-6)
        assert not torch.allclose(transform(x), x, atol=0.1)


@pytest.mark.parametrize("what", ["all", "factors", "first", "signs"])
def test_a_convolution_takes_it_back_padding_too(what: str) -> None:
    transform, layer = make(1, what=what), nn.Conv2d(WIDTH, 10, 3, stride=2, padding=1)
    x = random(2, WIDTH, 6, 5)
    weight = transform.on_weight(layer.weight)
    assert torch.allclose(nn.functional.conv2d(transform(x), weight, layer.bias, 2, 1), layer(x), atol=5e-6)
    tokens = make(-1, what=what)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(transform(x), tokens, atol=1e-6), "pixels are changed as tokens are"


def test_it_is_what_its_parts_say() -> None:
    transform, x = make(), random(3, WIDTH)
    assert transform.inverse_factors is not None
    assert transform.first is not None
    whole = matrix(Blocks(transform.first, transform.permutation, transform.second), WIDTH)
    assert torch.allclose(transform(x), (x / torch.exp(random(WIDTH, seed=1))) @ whole, atol=1e-5)
    assert torch.allclose(whole @ whole.T, torch.eye(WIDTH), atol=1e-6)
    assert transform.macs == WIDTH * (1 + 8 + 8)
    assert make(what="signs").macs == WIDTH * 8
    assert make(what="factors").block == 0


@pytest.mark.parametrize("what", ["all", "factors", "first", "signs"])
def test_a_producer_can_take_it_up(what: str) -> None:
    transform, weight, bias, x = make(what=what), random(WIDTH, 6, seed=8), random(WIDTH, seed=9), random(4, 6)
    changed = nn.functional.linear(x, transform.on_output(weight), transform.on_output(bias))
    assert torch.allclose(changed, transform(nn.functional.linear(x, weight, bias)), atol=3e-6)
    image, kernel, by_pixel = random(2, 6, 5, 5), random(WIDTH, 6, 3, 3, seed=8), make(1, what=what)
    changed = nn.functional.conv2d(image, by_pixel.on_output(kernel), by_pixel.on_output(bias))
    assert torch.allclose(changed, by_pixel(nn.functional.conv2d(image, kernel, bias)), atol=2e-5)


@pytest.mark.parametrize("what", ["all", "factors", "first", "signs"])
def test_weights_are_as_they_were_without_it(what: str) -> None:
    for weight in (random(10, WIDTH), random(10, WIDTH, 3, 3)):
        transform = make(what=what)
        assert torch.allclose(transform.off_weight(transform.on_weight(weight)), weight, atol=1e-5)


@pytest.mark.parametrize("what", ["all", "factors", "first", "signs"])
def test_an_empty_one_is_filled_and_computes_the_same(what: str) -> None:
    transform = make(what=what)
    again = InputTransform.empty(TransformForm.model_validate_json(transform.form.model_dump_json()))
    assert {name for name, _ in again.named_parameters()} == set()
    again.load_state_dict(transform.state_dict(), strict=True, assign=True)
    assert torch.equal(again(random(3, WIDTH)), transform(random(3, WIDTH)))
    assert again.form == transform.form


def test_a_hadamard_matrix_is_saved_as_its_signs() -> None:
    saved = InputTransform(128, blocks=Blocks(hadamard(128, seed=1)), randomized=True).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {"signs": (128,)}
    assert set(saved["signs"].tolist()) == {-1.0, 1.0}


def test_blocks_serve_other_widths_where_they_are_all() -> None:
    narrow = make(what="first").resized(8)
    assert torch.equal(narrow(random(3, 8)), make(what="first")(random(3, 8).repeat(1, 3))[:, :8])
    with pytest.raises(ValueError, match="a change of 24 channels cannot be one of 8"):
        make().resized(8)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="as many positive factors"):
        InputTransform(4, torch.tensor([1.0, 2.0, 0.0, -1.0]))
    with pytest.raises(ValueError, match="must be finite"):
        InputTransform(2, torch.tensor([1.0, 1e-320], dtype=torch.float64))
    with pytest.raises(ValueError, match="no permutation of 4 channels"):
        InputTransform(4, blocks=Blocks(torch.eye(2), torch.tensor([0, 1, 1, 3])))
    with pytest.raises(ValueError, match="blocks of 8 channels do not divide 12"):
        InputTransform(12, blocks=Blocks(hadamard(8)))
    with pytest.raises(ValueError, match="no Hadamard matrix with random signs"):
        InputTransform(8, blocks=Blocks(orthogonal(8, 1)), randomized=True)


class Pair(nn.Module):
    """Two linears on the same tensor."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        transform = make()
        self.one = Transformed(nn.Linear(WIDTH, 3), transform)
        self.other = Transformed(nn.Linear(WIDTH, 3, bias=False), transform if shared else make(), leads=not shared)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], dim=-1)


def test_a_shared_transform_is_saved_once_and_stays_shared() -> None:
    pair = Pair(shared=True)
    assert (pair.one.leads, pair.other.leads) == (True, False)
    assert len([name for name in pair.state_dict() if name.startswith("other.")]) == 1, "its weight alone"
    assert len(Pair(shared=False).state_dict()) == len(pair.state_dict()) + 4
    copied = copy.deepcopy(pair)
    assert copied.other.transform is copied.one.transform
    assert copied.one.transform is not pair.one.transform
    assert torch.equal(copied(random(2, WIDTH)), pair(random(2, WIDTH)))


def test_models_may_read_it_like_the_layer() -> None:
    layer = nn.Linear(WIDTH, 3)
    stands = Transformed(layer, make())
    assert [stands.in_features, stands.out_features] == [WIDTH, 3]
    assert stands.weight is layer.weight
    assert stands.bias is layer.bias
    assert Transformed(nn.Conv2d(WIDTH, 3, 3), make(1)).kernel_size == (3, 3)
