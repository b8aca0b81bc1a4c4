"""Attaching: the module computes the same, transforms are found again and rebuilt empty; strangers are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from quant.errors import ArtifactError, QuantError
from quant.layers import quantizable_layers
from quant.rotation.attach import attach_, detach_, install_transforms, own_names, transform_forms, transformed_layers
from quant.rotation.greedy import Blocks
from quant.rotation.hadamard import hadamard
from quant.rotation.report import TransformForm
from quant.rotation.transform import InputTransform


class Net(nn.Module):
    """[B, 8, 4, 4] to [B, 16, 8]: a convolution, two linears on one tensor, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)
        self.again = self.out

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        output: Tensor = self.again(self.out(self.query(tokens) * self.key(tokens)))
        return output


def make(axis: int = -1, seed: int = 0) -> InputTransform:
    factors = torch.exp(torch.randn(8, generator=torch.Generator().manual_seed(seed)))
    return InputTransform(8, factors, Blocks(hadamard(8, seed)), axis=axis, randomized=True)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def attached(net: Net) -> Net:
    shared = make(seed=1)
    attach_(net, {"key": shared, "query": shared, "out": make(seed=2), "conv": make(1, seed=3)})
    return net


def test_the_module_computes_the_same(net: Net, x: Tensor) -> None:
    truth, before = net(x), {name: layer.weight.clone() for name, layer in quantizable_layers(net).items()}
    attached(net)
    assert torch.allclose(net(x), truth, atol=1e-5)
    assert net.again is net.out
    layers = quantizable_layers(net)
    assert layers.keys() == {"conv.inner", "query.inner", "key.inner", "out.inner"}
    assert not any(torch.allclose(layers[f"{name}.inner"].weight, weight) for name, weight in before.items())


def test_the_first_layer_leads(net: Net) -> None:
    attached(net)
    found = transformed_layers(net)
    assert {name: layer.leads for name, layer in found.items()} == {
        "conv": True, "query": True, "key": False, "out": True,
    }  # fmt: skip
    assert found["key"].transform is found["query"].transform
    assert own_names(net)["key.inner"] == "key"
    forms = transform_forms(net)
    assert forms["key"] == TransformForm(like="query")
    assert (forms["conv"].axis, forms["conv"].signs, forms["conv"].factors) == (1, 8, True)


def test_empty_ones_are_installed_and_filled(net: Net, x: Tensor) -> None:
    fresh = copy.deepcopy(net)
    attached(net)
    install_transforms(fresh, transform_forms(net))
    fresh.load_state_dict(net.state_dict(), strict=True, assign=True)
    assert torch.equal(fresh(x), net(x))
    assert transform_forms(fresh) == transform_forms(net)


def test_tied_weights_are_not_changed_elsewhere(net: Net, x: Tensor) -> None:
    net.key.weight = net.query.weight
    truth = net(x)
    attach_(net, {"query": make()})
    assert torch.allclose(net(x), truth, atol=1e-5)


def test_layers_are_taken_out_again(net: Net, x: Tensor) -> None:
    truth, weight = net(x), net.query.weight.clone()
    attached(net)
    detach_(net, ["query", "conv"])
    assert transformed_layers(net).keys() == {"key", "out"}
    assert net.get_submodule("key").leads, "the first that stays"
    assert torch.allclose(net.query.weight, weight, atol=1e-6)
    assert torch.allclose(net(x), truth, atol=1e-5)
    detach_(net, ["key"])
    assert "key.transform.signs" not in net.state_dict()
    assert "out.transform.signs" in net.state_dict()
    with pytest.raises(QuantError, match="query is no float layer behind an input transform"):
        detach_(net, ["query"])


def test_strangers_are_refused(net: Net) -> None:
    with pytest.raises(QuantError, match="to transform the input of: nowhere"):
        attach_(net, {"nowhere": make()})
    with pytest.raises(ArtifactError, match="the input of nowhere, which the model does not have"):
        install_transforms(net, {"nowhere": make().form})
    with pytest.raises(ArtifactError, match="gives key the transform of query, which has none"):
        install_transforms(net, {"key": TransformForm(like="query")})
    with pytest.raises(ArtifactError, match="transforms 16 channels of key, which has 8"):
        install_transforms(net, {"key": make().form.model_copy(update={"width": 16})})
