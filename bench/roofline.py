"""The peak of this machine's arithmetic as measured, and what a model's integer products reach of it. Knows no rivals.

Peak: the best median rate of large products of square matrices, over libraries and sizes, in float32, bfloat16 and
int8. Two operations are one multiply-add. Products of a model: its own graph, as the openvino backend compiles it, run
with OpenVINO's counter of each node's time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from quant.backends import runtime

SIDES: Final = (1024, 2048)
ROUNDS: Final = 7
MIN_ROWS: Final = 1024
"""Products of so many rows and more are what the aim speaks of."""

Peaks = dict[str, float]
"""Number format to operations per second."""


@dataclass(frozen=True, slots=True)
class Product:
    """One integer matrix product or convolution of a compiled graph; rows are of the product that it amounts to."""

    name: str
    kernel: str
    rows: int
    inner: int
    columns: int
    seconds: float

    @property
    def operations(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.rows * self.inner * self.columns


def measured_peaks(
    threads: int, sides: Sequence[int] = SIDES, rounds: int = ROUNDS
) -> tuple[Peaks, Mapping[str, Peaks]]:
    """(best rate by format; rate by format of every way and size that was tried), interleaved."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trials = {(form, f"{way} {side}"): run for side in sides for (form, way), run in _ways(side).items()}
        sizes = {key: int(key[1].rpartition(" ")[2]) for key in trials}
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in trials}
        with torch.no_grad():
            for number in range(rounds + 1):
                for key, run in trials.items():
                    started = time.perf_counter()
                    run()
                    if number:  # the first is not counted: it allocates
                        taken[key].append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    tried: dict[str, Peaks] = {}
    for (form, way), seconds in taken.items():
        tried.setdefault(form, {})[way] = 2 * sizes[form, way] ** 3 / statistics.median(seconds)
    return {form: max(ways.values()) for form, ways in tried.items()}, tried


def _ways(side: int) -> dict[tuple[str, str], Callable[[], object]]:
    """(format, library's name) to a product of two square matrices."""
    left, right = (torch.randn(side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    half_left, half_right = left.bfloat16(), right.bfloat16()
    integers = [(30 * one).clamp(-127, 127).round().to(torch.int8) for one in (left, right)]
    ways: dict[tuple[str, str], Callable[[], object]] = {
        ("float32", "torch"): lambda: left @ right,
        ("bfloat16", "torch"): lambda: half_left @ half_right,
        ("int8", "torch._int_mm"): lambda: torch._int_mm(*integers),
    }
    if torch._C._has_mkldnn:
        ways["int8", "oneDNN"] = _onednn((integers[0].to(torch.int16) + 128).to(torch.uint8), integers[1])
    return ways


def _onednn(activations: Tensor, weights: Tensor) -> Callable[[], object]:
    """A linear layer of unsigned activations as PyTorch reaches oneDNN's."""
    packed = torch.ops.onednn.qlinear_prepack(weights, list(activations.shape))
    scales, zeros = torch.ones(weights.shape[0]), torch.zeros(weights.shape[0], dtype=torch.int64)
    tail: Any = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(activations, 0.01, 128, packed, scales, zeros, *tail)


def integer_products(graph: Path, sample: Sequence[int], threads: int, rounds: int = ROUNDS) -> list[Product]:
    """Every product that a graph of the openvino backend runs in int8 kernels, with its median time.

    Args:
        graph: as the backend keeps it.
        sample: shape [B, ...] of the latents.
        threads: CPU threads.
        rounds: runs that are counted, after one that is not.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    model = runtime.core().read_model(graph)
    model.reshape({port: [sample[0], *_lengths(port)[1:]] for port in model.inputs if _free(port)})
    properties = runtime.properties(threads) | {"PERF_COUNT": True}
    compiled = runtime.core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    inputs = [_filled(port) for port in compiled.inputs]
    taken: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        request.infer(inputs)
        for one in request.get_profiling_info() if number else ():
            taken.setdefault(one.node_name, []).append(one.real_time.total_seconds())
    found = [_product(node, taken) for node in compiled.get_runtime_model().get_ops()]
    return [one for one in found if one is not None]


def takes(graph: Path, sample: Sequence[int]) -> bool:
    """Whether a graph of the openvino backend is for latents of that shape, without rows."""
    ports = [port for port in runtime.core().read_model(graph).inputs if _SAMPLE & port.get_names()]
    return any(_lengths(port)[1:] == list(sample) for port in ports)


def _product(node: Any, taken: Mapping[str, list[float]]) -> Product | None:
    told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items() if key in _TOLD}
    kernel, name = told.get("primitiveType", ""), node.get_friendly_name()
    if told.get("layerType") not in _LAYERS or "_i8" not in kernel.lower() or name not in taken:
        return None
    output, weight = ([int(length) for length in port.get_shape()] for port in (node.output(0), node.input(1)))
    columns = weight[0]
    inner = math.prod(weight[1:])
    return Product(name, kernel, math.prod(output) // columns, inner, columns, statistics.median(taken[name]))


_TOLD = ("layerType", "primitiveType")
_LAYERS = ("Convolution", "FullyConnected")
_SAMPLE = {"sample", "hidden_states"}
"""What denoisers call their latents."""


def _free(port: Any) -> bool:
    return bool(port.get_partial_shape().is_dynamic)


def _lengths(port: Any) -> list[int]:
    return [0 if length.is_dynamic else length.get_length() for length in port.get_partial_shape()]


def _filled(port: Any) -> Any:
    """Random numbers, or zeros where integers are asked for: integer kernels take as long on any."""
    shape, kind = [int(length) for length in port.get_shape()], port.get_element_type().to_dtype()
    if kind.kind == "f":
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy().astype(kind)
    return torch.zeros(shape).numpy().astype(kind)


def shares(products: Sequence[Product], peak: float) -> dict[str, Any]:
    """What products of at least `MIN_ROWS` rows reach of a peak, together and one by one; and all products together."""
    large = [one for one in products if one.rows >= MIN_ROWS]
    return {
        "products": len(products),
        "share": _rate(products) / peak if products else None,
        "large_products": len(large),
        "large_share": _rate(large) / peak if large else None,
        "large_median": statistics.median(_rate([one]) for one in large) / peak if large else None,
        "large_worst": min(_rate([one]) for one in large) / peak if large else None,
        "seconds": sum(one.seconds for one in products),
    }


def slowest(products: Sequence[Product], peak: float, count: int = 10) -> list[dict[str, Any]]:
    """The products that take longest, with what each reaches of a peak."""
    ordered = sorted(products, key=lambda one: -one.seconds)[:count]
    return [asdict(one) | {"share": _rate([one]) / peak} for one in ordered]


def _rate(products: Sequence[Product]) -> float:
    return sum(one.operations for one in products) / max(1e-12, sum(one.seconds for one in products))
