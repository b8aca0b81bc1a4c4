"""A small network with every kind of layer that matters, statistics of it, and an artifact made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant

RECIPE = 'name = "small"\n[[rules]]\nmatch = ["last"]\nkeep = "float"\nbecause = "last layer"\n'


class Net(nn.Module):
    """[B, 8, 6, 6] and [B] times to [B, 8, 6, 6]: convolutions, norm, linears, a residual, and a layer of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.time = nn.Linear(4, 32)
        self.down = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.mix = nn.Linear(64, 64, bias=False)
        self.up = nn.Conv2d(64, 32, 1)
        self.last = nn.Conv2d(32, 8, 1)
        self.unused = nn.Linear(3, 3)
        self.shift: Tensor
        self.register_buffer("shift", torch.arange(32.0), persistent=False)

    def forward(self, sample: Tensor, time: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        angles = time.float()[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
        h = torch.nn.functional.silu(self.norm(self.first(sample)))
        h = h + self.time(torch.sin(angles))[:, :, None, None] + self.shift[None, :, None, None] / 32
        low = torch.nn.functional.gelu(self.down(h))
        low = self.mix(low.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, low.shape[2:])
        h = h + torch.nn.functional.interpolate(self.up(low), scale_factor=2.0)
        return (self.last(h) * scale,)


def make_net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval().requires_grad_(False)


def make_empty() -> Net:
    """The network with parameters on the meta device and real buffers, as accelerate makes it."""
    net = make_net()
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return net


def make_call(rows: int, seed: int = 1) -> quant.Call:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 8, 6, 6, generator=generator)
    times = torch.randint(0, 1000, (rows,), generator=generator)
    clock = quant.StepClock.unknown(rows)
    return quant.Call({"sample": sample, "time": times}, clock, constants={"scale": 2.0}, roles={"time": "time"})


def feed(answer: Callable[[quant.Call], Tensor]) -> None:
    """What calibrates the network."""
    for seed in range(4):
        answer(make_call(8, seed))


@pytest.fixture
def net() -> nn.Module:
    return make_net()


@pytest.fixture
def empty() -> Callable[[], nn.Module]:
    return make_empty


@pytest.fixture
def call() -> Callable[..., quant.Call]:
    return make_call


@pytest.fixture
def run() -> Callable[[Callable[[quant.Call], Tensor]], None]:
    return feed


@pytest.fixture
def recipe() -> quant.Recipe:
    from quant.recipe import parse

    return parse(RECIPE, "the tests' recipe")


@pytest.fixture
def statistics(net: nn.Module) -> quant.Statistics:
    return quant.calibrate(net, feed)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, quant.Manifest]:
    """An artifact of the network."""
    from quant.recipe import parse

    folder, module, chosen = tmp_path_factory.mktemp("artifacts") / "small", make_net(), parse(RECIPE, "tests")
    made = quant.quantize_(module, chosen, quant.calibrate(module, feed))
    manifest = quant.save(
        folder, module, made, chosen, model="net", model_sha256="a" * 64, calibration={"prompts": 4}, version="0"
    )
    return folder, manifest
