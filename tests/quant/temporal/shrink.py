"""A process of its own that builds a Qwen-Image-shaped model, puts tables in time's place, and prints its memory.

Memory is what the operating system holds resident, in pages: [before, with the model, with tables instead], then the
share of the model's parameters that tables replaced. Must run with a fixed MALLOC_MMAP_THRESHOLD_: freed weights are
given back then.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path

import diffusers

from pipelines.examples import example_call
from pipelines.tiny_denoisers import TINY_DENOISERS
from quant.temporal.discover import discover
from quant.temporal.layers import install
from quant.temporal.plan import make_plan
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import build_tables


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])


def build(heads: int, layers: int) -> diffusers.QwenImageTransformer2DModel:
    shape = {"num_attention_heads": heads, "attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}
    config = {**TINY_DENOISERS["qwen-image"].config, **shape, "num_layers": layers}
    return diffusers.QwenImageTransformer2DModel(**config).eval().requires_grad_(False)


def put_tables(module: diffusers.QwenImageTransformer2DModel) -> None:
    call = example_call(module)
    leaves = discover(module, call)
    program, times = TemporalProgram(module, leaves), {"timestep": (1.0, 0.75, 0.5, 0.25)}
    plan = make_plan(program, leaves, call, times)
    tables = build_tables(program, call, times, {one.name: one.width for one in plan.lookups})
    install(module, plan, tables)


def main() -> None:
    put_tables(build(2, 1))  # whatever libraries load for good is loaded
    before = resident()
    module = build(8, 8)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    whole = resident()
    put_tables(module)
    share = 1 - sum(parameter.numel() for parameter in module.parameters()) / parameters
    print(json.dumps([before, whole, resident(), share]))


if __name__ == "__main__":
    main()
