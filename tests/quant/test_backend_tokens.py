"""Scales that come with tokens or follow ranges of time, in integer kernels: as the reference computes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.backends.moment import TimedExecutable
from quant.backends.openvino import OpenVinoExecutable
from quant.layers import quantized_layers
from quant.recipe import parse
from tests.quant.conftest import make_net

TIMES = (900, 700, 500, 300, 100)
RECIPES = {
    "tokens": '[activations]\ngrain = "token"\n',
    "tokens of 4 bits": '[activations]\nbits = 4\ngrain = "token"\n',
    "ranges": '[activations]\nsteps = "ranges"\nbranches = "each"\n[ranges]\ncount = 2\n',
    "ranges by error": '[activations]\nsteps = "ranges"\n[ranges]\nmethod = "dp"\ncount = 3\ntolerance = 0.0\n',
}
RULE = '[[rules]]\nmatch = ["last"]\nkeep = "float"\nbecause = "last layer"\n'

Made = tuple[Path, quant.Manifest, nn.Module]


def call_at(step: int, rows: int = 4, *, seed: int = 0) -> quant.Call:
    """Rows of both branches at one step; those of late steps are larger."""
    sample = torch.randn(rows, 8, 6, 6, generator=torch.Generator().manual_seed(10 * seed + step)) * (1 + step)
    branch = torch.arange(rows) % 2
    clock = quant.StepClock(torch.full((rows,), step), torch.full((rows,), len(TIMES)), branch)
    time = torch.full((rows,), TIMES[step])
    return quant.Call({"sample": sample, "time": time}, clock, constants={"scale": 2.0}, roles={"time": "time"})


def run(answer: Callable[[quant.Call], Tensor]) -> None:
    for step in range(len(TIMES)):
        answer(call_at(step))


@pytest.fixture(scope="module", params=list(RECIPES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact, and the quantized module itself."""
    module = make_net()
    recipe = parse(f'name = "x"\n{RECIPES[request.param]}{RULE}', "here")
    quantization = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    folder = tmp_path_factory.mktemp("artifacts") / "made"
    manifest = quant.save(
        folder, module, quantization, recipe, model="x", model_sha256="a" * 64, calibration={}, version="0"
    )
    return folder, manifest, module


def opened(name: str, made: Made, empty: Callable[[], nn.Module], cache: Path) -> quant.Executable:
    folder, manifest, _ = made
    return quant.open_backend(name, folder, manifest, empty, quant.Options(cache, threads=1))


def test_openvino_agrees_with_the_reference_at_every_step(
    made: Made, empty: Callable[[], nn.Module], tmp_path: Path
) -> None:
    fast, exact = (opened(name, made, empty, tmp_path) for name in quant.BACKENDS)
    for step in range(len(TIMES)):
        call = call_at(step, rows=3, seed=1)
        assert float(quant.relative_errors(fast.run(call), exact.run(call)).max()) < 0.03


def test_integer_kernels_do_nearly_all_of_the_work(made: Made, empty: Callable[[], nn.Module], tmp_path: Path) -> None:
    fast, call = opened("openvino", made, empty, tmp_path), call_at(1)
    if isinstance(fast, TimedExecutable):
        call, fast = fast.at_its_moment(call), fast.executable
    assert isinstance(fast, OpenVinoExecutable)
    assert 0.9 <= fast.int8_share(call) < 1.0  # the last layer is float


def test_zeros_and_large_numbers_are_no_trouble(made: Made, empty: Callable[[], nn.Module], tmp_path: Path) -> None:
    call = call_at(0)
    call.rows["sample"][0] = 0.0
    call.rows["sample"][1, :, 2:] = 0.0
    call.rows["sample"][2] *= 1e3
    for name in quant.BACKENDS:
        assert bool(torch.isfinite(opened(name, made, empty, tmp_path).run(call)).all())


def test_a_row_is_the_same_in_any_company(made: Made, empty: Callable[[], nn.Module], tmp_path: Path) -> None:
    fast, call = opened("openvino", made, empty, tmp_path), call_at(2)
    together = fast.run(call)
    assert torch.equal(fast.run(call.take(torch.tensor([3]))), together[3:])


def test_what_is_stored_of_inputs(made: Made) -> None:
    _, manifest, module = made
    by_token = manifest.recipe["activations"]["grain"] == "token"
    assert (manifest.temporal is None) == by_token
    for _, layer in quantized_layers(module):
        assert (layer.input_scale is None) == by_token and layer.input_zero_point is not None
    told = {layer.scheme for layer in manifest.layers if layer.scheme}
    assert all(("per token" in scheme) == by_token for scheme in told)
    assert all(layer.error is not None and 0 < layer.error < 0.3 for layer in manifest.layers if layer.scheme)
