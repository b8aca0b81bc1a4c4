"""The cuda backend on whole artifacts: as the reference backend answers, and honest where it cannot."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quant
from quant.backends import cuda
from quant.backends.cuda import CudaExecutable
from quant.backends.cuda_layers import KernelLayer
from quant.backends.moment import TimedExecutable
from quant.backends.reference import ReferenceExecutable
from quant.guidance.share import Patterns
from quant.kernels import tuning
from quant.layers import QuantizedLayer
from quant.recipe import parse
from tests.quant.conftest import Net, make_call, make_empty, make_net
from tests.quant.kernels.on import DEVICE
from tests.quant.test_backend_tokens import call_at, run

ROOT = Path(__file__).parents[3]
RULE = '[[rules]]\nmatch = ["last"]\nkeep = "float"\nbecause = "last layer"\n'
RECIPES = {
    "one scale": "",
    "tokens, 4-bit weights": '[weights]\nbits = 4\n[activations]\ngrain = "token"\n',
    "ranges and branches": '[activations]\nsteps = "ranges"\nbranches = "each"\n[ranges]\ncount = 2\n',
    "4-bit weights alone": "[weights]\nbits = 4\n[activations]\nbits = 32\n",
}

Made = tuple[Path, quant.Manifest]


@pytest.fixture(scope="module", params=list(RECIPES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    module, recipe = make_net(), parse(f'name = "x"\n{RECIPES[request.param]}{RULE}', "here")
    quantization = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    folder = tmp_path_factory.mktemp("artifacts") / "made"
    told = {"model": "x", "model_sha256": "a" * 64, "calibration": {}, "version": "0"}
    return folder, quant.save(folder, module, quantization, recipe, **told)  # type: ignore[arg-type]


class Anywhere(Net):
    """Makes its constants where its inputs are."""

    def forward(self, sample: Tensor, time: Tensor, scale: float = 1.0) -> tuple[Tensor]:
        with torch.device(sample.device):
            return super().forward(sample, time, scale)


def empty_anywhere() -> Net:
    net = make_empty()
    net.__class__ = Anywhere
    return net


def opened(name: str, made: Made, cache: Path, **options: str) -> quant.Executable:
    return quant.open_backend(name, *made, empty_anywhere, quant.Options(cache, **options))  # type: ignore[arg-type]


def inner(executable: quant.Executable) -> CudaExecutable:
    own = executable.executable if isinstance(executable, TimedExecutable) else executable
    assert isinstance(own, CudaExecutable)
    return own


def test_it_agrees_with_the_reference_at_every_step(made: Made, tmp_path: Path) -> None:
    fast, exact = opened("cuda", made, tmp_path), opened("reference", made, tmp_path)
    for step in (0, 2, 4):
        call = call_at(step, rows=3, seed=1)
        found, expected = fast.run(call), exact.run(call)
        assert found.dtype is torch.float32 and found.device == call.rows["sample"].device
        assert float(quant.relative_errors(found, expected).max()) < 0.01


def test_every_layer_is_told(made: Made, tmp_path: Path) -> None:
    fast = inner(opened("cuda", made, tmp_path))
    layers = set(made[1].forms)
    assert set(fast.kernels) | set(fast.float_layers) == layers
    if made[1].activation_bits == 32:
        assert set(fast.float_layers.values()) == {"it is a convolution of inputs that stay float"}
        assert fast.kernels["mix"] == "int4_linear of float inputs"
    else:
        assert not fast.float_layers and fast.kernels["down"] == "int8_conv" and fast.kernels["up"] == "int8_linear"


@pytest.fixture
def plain(artifact: Made, tmp_path: Path) -> CudaExecutable:
    return inner(opened("cuda", artifact, tmp_path))


def test_calls_run_in_parts(plain: CudaExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call(3)
    whole = plain.run(call)
    monkeypatch.setattr(cuda, "MOST_ROWS", 2)
    assert torch.allclose(plain.run(call), whole, atol=1e-5)


def test_what_was_made_in_inference_mode_is_taken(plain: CudaExecutable) -> None:
    expected = plain.run(make_call(1))
    with torch.inference_mode():
        assert torch.equal(plain.run(make_call(1)), expected)


def test_closed_executables_say_so(plain: CudaExecutable) -> None:
    assert 0 < plain.weights_bytes < 400_000
    plain.close()
    assert plain.weights_bytes == 0
    with pytest.raises(quant.BackendError, match="the cuda executable was closed"):
        plain.run(make_call(1))


class Attention(nn.Module):
    """Attention over [B, tokens, 16], with its projections one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))
        return mixed


class Tokens(nn.Module):
    """[B, 5, 16] to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attn, self.last = nn.Linear(16, 16), Attention(), nn.Linear(16, 16)

    def forward(self, sample: Tensor) -> Tensor:
        h = self.first(sample)
        out: Tensor = self.last(h + self.attn(h))
        return out


def pairs(rows: int, pattern: int) -> quant.Call:
    sample = torch.randn(rows, 5, 16, generator=torch.Generator().manual_seed(rows))
    clock = quant.StepClock(torch.zeros(rows).long(), torch.ones(rows).long(), torch.arange(rows) % 2)
    return quant.Call({"sample": sample}, clock, pattern=pattern)


@pytest.fixture
def tokens() -> Tokens:
    """With the last layer left float."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Tokens().eval().requires_grad_(False)

    def feed(answer: Callable[[quant.Call], Tensor]) -> None:
        for rows in (2, 4):
            answer(pairs(rows, 0))

    recipe = parse(f'name = "x"\n[activations]\ngrain = "token"\n{RULE}', "here")
    quant.quantize_(module, recipe, quant.calibrate_for(module, feed, recipe))
    return module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_not_quantized_may_be_half_as_wide(tokens: Tokens, dtype: torch.dtype, tmp_path: Path) -> None:
    exact = ReferenceExecutable(copy.deepcopy(tokens))
    fast = CudaExecutable(lambda: tokens, tmp_path, dtype=dtype)
    assert tokens.last.weight.dtype is dtype and tokens.first.weight.dtype is dtype
    found, expected = fast.run(pairs(2, 0)), exact.run(pairs(2, 0))
    assert found.dtype is torch.float32
    assert float(quant.relative_errors(found, expected).max()) < 0.05


@pytest.mark.parametrize("maps", [False, True], ids=["outputs", "maps"])
def test_attention_is_shared_as_patterns_say(tokens: Tokens, maps: bool, tmp_path: Path) -> None:
    module = tokens
    patterns = Patterns(((), ("attn",)), maps)
    exact = ReferenceExecutable(copy.deepcopy(module), patterns)
    fast = CudaExecutable(lambda: module, tmp_path, patterns=patterns)
    for pattern in (0, 1):
        found, expected = fast.run(pairs(4, pattern)), exact.run(pairs(4, pattern))
        assert float(quant.relative_errors(found, expected).max()) < 0.01
    assert not torch.allclose(fast.run(pairs(4, 1)), fast.run(pairs(4, 0)), atol=1e-3)


def test_fp8_is_taken_where_it_is_asked_for(artifact: Made, tmp_path: Path) -> None:
    fast, exact = opened("cuda", artifact, tmp_path, gpu_products="fp8"), opened("reference", artifact, tmp_path)
    told = inner(fast).kernels
    assert told["mix"] == "fp8_linear" and told["time"] == "int8_linear"  # four inputs have no fp8 product
    call = make_call(2)
    assert 0 < float(quant.relative_errors(fast.run(call), exact.run(call)).max()) < 0.1


@pytest.mark.skipif(DEVICE == "cuda", reason="fakes what the device is")
def test_what_it_needs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(quant.BackendError, match=r"computes in float32, bfloat16 or float16, not torch\.float64"):
        CudaExecutable(make_net, tmp_path, dtype=torch.float64)
    monkeypatch.setattr(cuda, "interpreted", lambda: False)
    with pytest.raises(quant.BackendError, match="needs an NVIDIA GPU, and torch"):
        cuda.device_at_hand()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Old")
    with pytest.raises(quant.BackendError, match=r"needs compute capability 8\.0 or more; Old has"):
        cuda.device_at_hand()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert cuda.device_at_hand() == torch.device("cuda", 1)


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_without_gpu_and_interpreter_it_refuses() -> None:
    code = (
        "import os; os.environ.pop('TRITON_INTERPRET', None)\n"
        "from quant.backends.cuda import device_at_hand\n"
        "from quant.errors import BackendError\n"
        "try:\n    device_at_hand()\nexcept BackendError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert "needs an NVIDIA GPU" in done.stdout and "TRITON_INTERPRET=1" in done.stdout, done.stderr


def test_measured_configs_are_taken_from_the_cache(
    artifact: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    plain = inner(opened("cuda", artifact, tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(tuning, "read", lambda path: read.append(path))
    plain.device = torch.device("cuda")
    plain._use_measured_configs(tmp_path)
    assert not read
    path = tmp_path / "cuda" / "some-gpu.json"
    path.parent.mkdir()
    path.touch()
    plain._use_measured_configs(tmp_path)
    assert read == [path]
    tuning.activate(None)


def test_weights_lie_on_the_device_once(plain: CudaExecutable) -> None:
    module = plain._module
    assert module is not None
    layers = [part for part in module.modules() if isinstance(part, KernelLayer)]
    assert len(layers) == len(plain.kernels) == 5
    assert not any(isinstance(part, QuantizedLayer) for part in module.modules())
    assert all(tensor.device.type == DEVICE for tensor in (*module.parameters(), *module.buffers()))
