"""Values that wait: kernels take in what stands around products; whatever else is asked for comes as torch has it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends.cuda import CudaExecutable
from quant.backends.cuda_install import install
from quant.backends.cuda_layers import Once
from quant.backends.cuda_waiting import Normed, Overwritten, Product, Switch, Waiting, computed, row_each
from quant.backends.reference import ReferenceExecutable
from quant.clock import MomentHolder
from quant.layers import InputGrid, QuantizedLinear, bind, empty_like
from quant.recipe import parse
from tests.quant.backends.test_cuda_layers import fill, numbers, run
from tests.quant.kernels.on import DEVICE

WIDTH = 24
NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(WIDTH),
    "layer without weights": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6),
    "layer in float32": lambda: FP32LayerNorm(WIDTH, 1e-6),
    "rms": lambda: nn.RMSNorm(WIDTH, eps=1e-6),
    "rms of diffusers": lambda: RMSNorm(WIDTH, eps=1e-6),
}


class Ops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch itself computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """What blocks of transformers do with a norm and two linears; `modulated` as PixArt, Wan and others have it."""

    def __init__(self, norm: nn.Module, grid: InputGrid, how: str = "gelu_tanh") -> None:
        super().__init__()
        self.norm, self.how = norm, how
        self.first = empty_like(nn.Linear(WIDTH, 2 * WIDTH), grid, "cpu")
        self.second = empty_like(nn.Linear(2 * WIDTH, WIDTH), grid, "cpu")
        self.dropout = nn.Dropout(0.1)
        for layer in (self.first, self.second):
            fill(layer, 8)
        self.table = nn.Parameter(numbers(1, 3, WIDTH, seed=3) / 4, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shift, scale, gate = (self.table + x[:, :3].mean(-1, keepdim=True)).chunk(3, dim=1)
        h = self.norm(x) * (1 + scale) + shift
        h = self.first(h.type_as(x))
        h = functional.gelu(h, approximate="tanh") if self.how == "gelu_tanh" else functional.silu(h)
        out: Tensor = x + gate * self.dropout(self.second(h)) / 1.0
        return out


def both(block: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The block with kernels that take nothing in, and with such that do."""
    made = []
    for on in (False, True):
        module = nn.Sequential(copy.deepcopy(block)).eval().requires_grad_(False).to(DEVICE)
        bind(module, MomentHolder())
        install(module, Once(), dtype, Switch(on))
        made.append(module)
    return made[0], made[1]


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("grain", ["tensor", "token"])
@pytest.mark.parametrize("how", ["gelu_tanh", "silu"])
def test_a_block_of_a_transformer(make: Callable[[], nn.Module], grain: Any, how: str) -> None:
    apart, fused = both(Block(make(), InputGrid(8, grain=grain), how))
    x = numbers(3, 5, WIDTH)
    with Ops() as ops:
        found = run(fused, x)
    assert torch.allclose(computed(found), run(apart, x), rtol=1e-3, atol=2e-2)
    around = {"native_layer_norm", "rsqrt", "_fused_rms_norm", "gelu", "silu", "native_dropout", "div"}
    assert not around & set(ops.seen)
    assert ops.seen["mul"] == 0 and ops.seen["add"] == 2  # of the modulation's own numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_of_half_the_width(dtype: torch.dtype) -> None:
    apart, fused = both(Block(nn.LayerNorm(WIDTH), InputGrid(8)), dtype)
    x = numbers(2, 5, WIDTH).to(dtype)
    found, expected = computed(run(fused, x)), run(apart, x)
    assert found.dtype is expected.dtype is dtype
    assert float((found - expected).norm() / expected.norm()) < 0.02


def linear(x: Tensor) -> tuple[Tensor, Product]:
    """What a linear gives at once, and the same waiting."""
    layer = empty_like(nn.Linear(WIDTH, WIDTH), InputGrid(8), "cpu")
    fill(layer, 8)
    apart, fused = both(layer)
    waiting = run(fused, x)
    assert isinstance(waiting, Product)
    return run(apart, x), waiting


def normed(x: Tensor) -> tuple[Tensor, Normed]:
    norm = nn.Sequential(nn.LayerNorm(WIDTH)).requires_grad_(False).to(DEVICE)
    expected = norm(x)
    install(norm, Once(), torch.float32, Switch())
    waiting = norm(x)
    assert isinstance(waiting, Normed)
    return expected, waiting


GATES = {
    "each row": (2, 1, WIDTH),
    "all rows": (1, 1, WIDTH),
    "channels": (WIDTH,),
    "tokens": (2, 5, WIDTH),
    "one token": (1, 5, WIDTH),
    "scalars": (2, 1, 1),
    "one number": (),
    "wider": (3, 2, 5, WIDTH),
}
ASKED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "mul": lambda x, other: x * other,
    "mul from the right": lambda x, other: other * x,
    "add": lambda x, other: x + other,
    "add from the right": lambda x, other: torch.add(other, x),
    "add twice": lambda x, other: x * other + other + other,
    "mul twice": lambda x, other: x * other * other,
    "mul after add": lambda x, other: (x + other) * other,
    "an activation after the gate": lambda x, other: functional.silu(x * other),
    "two activations": lambda x, other: functional.gelu(functional.gelu(x)) * other,
    "a share of it": lambda x, other: torch.add(x, other, alpha=0.5),
    "numbers": lambda x, other: (2 * x + 1) / 3 - other,
    "halves": lambda x, other: x.to(torch.bfloat16).float() * other,
    "whole": lambda x, other: x.to(torch.int32) * other,
    "itself": lambda x, other: x * x + x * other,
    "used twice": lambda x, other: functional.silu(x) + x * other,
    "views": lambda x, other: x.view(2, -1).reshape(2, 5, -1) * other,
    "parts": lambda x, other: torch.cat([*x.chunk(2, -1)], dim=-1)[:, :] * other,
    "overwritten": lambda x, other: x.clone().mul_(2).add_(other.expand(2, 5, WIDTH) if other.ndim < 4 else 1),
    "dropout": lambda x, other: functional.dropout(x, 0.5, training=False) * other,
    "attention": lambda x, other: functional.scaled_dot_product_attention(x, x, x) * other,
    "a list": lambda x, other: x.tolist() and x * other,
}


@pytest.mark.parametrize("shape", GATES.values(), ids=GATES)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("make", [linear, normed])
def test_whatever_is_asked_for_is_as_torch_has_it(
    make: Callable[[Tensor], tuple[Tensor, Waiting]],
    ask: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
) -> None:
    plain, waiting = make(numbers(2, 5, WIDTH).to(DEVICE))
    other = numbers(*shape, seed=2).to(DEVICE)
    found, expected = ask(waiting, other), ask(plain, other)
    assert found.shape == expected.shape and found.dtype is expected.dtype
    assert torch.allclose(computed(found).float(), expected.float(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(waiting.computed(), plain, rtol=1e-5, atol=1e-5)  # nothing has changed it


def test_shells_tell_their_form() -> None:
    _, waiting = linear(numbers(2, 5, WIDTH).to(DEVICE))
    assert waiting.shape == (2, 5, WIDTH) and waiting.ndim == 3 and len(waiting) == 2 and waiting.size(1) == 5
    assert waiting.dtype is torch.float32 and waiting.device.type == DEVICE and waiting.numel() == 10 * WIDTH
    assert waiting._made is None
    assert waiting.sum() == waiting.computed().sum() and waiting.computed() is waiting.computed()


def test_rows_that_a_kernel_takes() -> None:
    shape = torch.Size((2, 5, WIDTH))
    given = {name: row_each(numbers(*form), shape) for name, form in GATES.items()}
    assert {name for name, rows in given.items() if rows is not None} == {"each row", "all rows", "channels"}
    assert all(rows is None or rows.shape == (2, WIDTH) for rows in given.values())
    assert row_each(torch.ones(2, 1, WIDTH).int(), shape) is None
    assert row_each(numbers(2, 1, 2 * WIDTH)[..., ::2], shape) is None
    flat = row_each(numbers(3, WIDTH), torch.Size((3, WIDTH)))
    assert flat is not None and flat.shape == (3, WIDTH)


class Overwriting(nn.Module):
    """Adds to what it has normalized before it uses the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, sample: Tensor) -> Tensor:
        h = sample * 2
        n = self.norm(h)
        h += 1.5
        out: Tensor = self.last(h + self.mix(n))
        return out


def test_what_a_model_overwrites_does_not_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Overwriting().eval().requires_grad_(False)
    call = quant.Call({"sample": numbers(2, 5, WIDTH)}, quant.StepClock(*(torch.zeros(2).long() for _ in range(3))))
    recipe = parse('name = "x"\n[[rules]]\nmatch = ["last"]\nkeep = "float"\nbecause = "last"\n', "here")
    quant.quantize_(module, recipe, quant.calibrate_for(module, lambda answer: [answer(call)], recipe))
    exact, fast = ReferenceExecutable(copy.deepcopy(module)), CudaExecutable(lambda: module, tmp_path)
    waits: list[bool] = [fast._waits.on]
    assert float(quant.relative_errors(fast.run(call), exact.run(call)).max()) < 0.01
    assert [*waits, fast._waits.on] == [True, False]
    assert float(quant.relative_errors(fast.run(call), exact.run(call)).max()) < 0.01
    assert caplog.text.count("Overwriting writes over what it has normalized") == 1, "it is told, and once"
    h = numbers(2, 5, WIDTH).to(DEVICE)
    _, waiting = normed(h)
    h += 1
    with pytest.raises(Overwritten):
        waiting.computed()


def test_compilers_see_plain_operations() -> None:
    apart, fused = both(Block(nn.LayerNorm(WIDTH), InputGrid(8, grain="token")))
    x, graphs = numbers(2, 5, WIDTH).to(DEVICE), list[torch.fx.GraphModule]()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    expected = run(apart, x)
    with torch.no_grad():
        found = torch.compile(fused, fullgraph=True, backend=keep)(x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=2e-2)
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert any("int8_linear" in one or "integer_linear" in one for one in called), called
    assert not any("quantize_tokens" in one for one in called), called


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_models_of_every_family(name: str, tmp_path: Path) -> None:
    module, call = tiny_denoiser(name, rows=2)
    recipe = parse('name = "x"\n[activations]\ngrain = "token"\n', "here")
    quant.quantize_(module, recipe, quant.calibrate_for(module, lambda answer: [answer(call)], recipe))
    linears = sum(isinstance(part, QuantizedLinear) for part in module.modules())
    apart = CudaExecutable(lambda: copy.deepcopy(module), tmp_path, fuses=False)
    fused = CudaExecutable(lambda: module, tmp_path)
    expected, found = apart.run(call), fused.run(call)
    assert linears > 5 and fused._waits.on
    assert float(quant.relative_errors(found, expected).max()) < 0.02
