"""Compiles kernels for a GPU that is not at hand, and tells what they take. A program: `python -m ... [all]`.

Operators run on CPU tensors with their launches replaced by compilation for sm_90, so that what is compiled is what
would be launched. To be run without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quant.kernels import fp8_linear, int8_conv, product, quantize, tuning
from quant.kernels.forms import After, Before
from quant.kernels.int8_conv import Window
from quant.kernels.linear import int4_linear, int8_linear, pack_rows

Told = dict[str, Any]
TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
}
told: list[Told] = []


def compile_instead(kernel: Any, _: int, __: Tensor, *arguments: Any, **options: Any) -> None:
    """What stands in the place of `quant.kernels.device.launch`."""
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    launched = {name: options.pop(name) for name in ("num_warps", "num_stages") if name in options}
    given |= options
    signature, constants, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, Tensor):
            signature[name], aligned[(place,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif name in options or value is None or (value == 1 and not kernel.params[place].do_not_specialize):
            signature[name], constants[(place,)] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=TARGET, options=launched)
    products = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S+", made.asm["ptx"])))
    told.append({"shared": made.metadata.shared, "products": products})


def rounding() -> Iterator[tuple[str, Callable[[], object]]]:
    x, vector = torch.zeros(2, 64, 1152), torch.ones(1152)
    everything = Before("layer", 1e-5, vector, vector, x[:, 0].clone(), x[:, 1].clone(), vector, torch.ones(128))
    yield "tokens", lambda: quantize.quantize_tokens(x, 128, 255)
    yield "scaled", lambda: quantize.quantize_scaled(x.bfloat16(), torch.ones(2), 128, 255)
    yield "fp8 rows", lambda: fp8_linear.quantize_fp8(x[0].bfloat16())
    yield "fused", lambda: quantize.quantize_tokens(x.bfloat16(), 128, 255, everything)


def products(entries: tuple[tuning.Entry, ...]) -> Iterator[tuple[str, Callable[[], object]]]:
    for entry in entries:
        yield f"{entry.kernel} {entry.m} {entry.n} {entry.k}", lambda entry=entry: run(entry)  # type: ignore[misc]


def run(entry: tuning.Entry) -> None:
    rows, columns, depth = entry.m, entry.n, entry.k
    kind = entry.kernel.rpartition("_")[2]
    dtype = {"half": torch.bfloat16, "float": torch.float32}.get(kind, torch.int8)
    weight, scales = torch.zeros(columns, depth, dtype=torch.int8), torch.ones(columns)
    out = torch.float32 if kind == "float" else torch.bfloat16
    after = After(torch.ones(rows), scales.int() if dtype is torch.int8 else None, scales, "gelu_tanh")
    if kind == "conv":
        picture = torch.zeros(1, 1, rows, depth // 9, dtype=torch.int8)
        whole = After(torch.ones(1), scales.int(), scales)
        int8_conv.int8_conv(picture, weight.view(columns, 3, 3, -1), scales, 5, Window(padding=(1, 1)), whole, out)
    elif entry.kernel.startswith("int4"):
        int4_linear(torch.zeros(rows, depth, dtype=dtype), pack_rows(weight), scales, after, out)
    else:
        int8_linear(torch.zeros(rows, depth, dtype=dtype), weight, scales, after, out)


def ones() -> Iterator[tuple[str, Callable[[], object]]]:
    """Sizes of 1 are constants to the compiler."""
    x, one = torch.zeros(1, 1, dtype=torch.int8), torch.ones(1)
    after = After(one, one.int(), one)
    yield "ones tokens", lambda: quantize.quantize_tokens(torch.zeros(1, 1, 1), 1, 255, Before("layer", 1.0, one, one))
    yield "ones int8_linear", lambda: int8_linear(x, x, one, after)
    yield "ones int4_linear", lambda: int4_linear(x, pack_rows(x), one, after)
    yield (
        "ones int8_conv",
        lambda: int8_conv.int8_conv(x[None, None], x[None, None], one, 1, Window((1, 1), (1, 1)), after),
    )
    yield "ones fp8 rows", lambda: fp8_linear.quantize_fp8(one[None])


FEW = {"fused", "fp8 rows", "int8_linear 4096 4096 4096", "int4_linear 4096 4096 4096", "int8_conv 8192 320 2880"}


def main() -> None:
    """Prints one JSON object: name to what was compiled."""
    for module in (quantize, fp8_linear, product, int8_conv):
        module.launch = compile_instead  # type: ignore[attr-defined]
    found = {}
    entries = tuning.read(tuning.SHIPPED).entries
    for name, make in (*rounding(), *ones(), *products(entries)):
        if sys.argv[1:] == ["all"] or name in FEW or name.startswith("ones"):
            make()
            found[name] = told.pop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
