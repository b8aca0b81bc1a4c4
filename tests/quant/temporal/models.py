"""Tiny random diffusers models, their temporal layers cut out, calls of them, and what hooks on an uncut one see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.backends.moment import run_timed, timed
from quant.clock import Moment, MomentHolder, StepClock
from quant.layers import bind, replace_layers
from quant.temporal.discover import TemporalLeaf, discover
from quant.temporal.features import TemporalPlan
from quant.temporal.layers import cut_leaves
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import build_tables

SCHEDULE = (0.0, 5.0, 250.0, 600.0, 999.0)
ROLES = {
    "timestep": "time",
    "encoder_hidden_states": "text",
    "pooled_projections": "pooled",
    "class_labels": "constant",
    "guidance": "constant",
}


class Tiny(NamedTuple):
    """A model, and what makes a call of some rows at given times [B] or [B, L]."""

    module: nn.Module
    call: Callable[[Tensor], Call]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_call(rows: dict[str, Tensor]) -> Call:
    roles: Any = {name: ROLES[name] for name in rows if name in ROLES}
    clock = StepClock.unknown(next(iter(rows.values())).shape[0])
    return Call(rows, clock, constants={"return_dict": False}, roles=roles)


def _unet() -> Tiny:
    module = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )

    def call(times: Tensor) -> Call:
        b = len(times)
        return make_call({"sample": random(b, 4, 8, 8), "timestep": times, "encoder_hidden_states": random(b, 7, 32)})

    return Tiny(module, call)


def _dit() -> Tiny:
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )

    def call(times: Tensor) -> Call:
        labels = torch.full((len(times),), 3)
        return make_call({"hidden_states": random(len(times), 4, 8, 8), "timestep": times, "class_labels": labels})

    return Tiny(module, call)


def _sd3() -> Tiny:
    module = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
    )

    def call(times: Tensor) -> Call:
        b = len(times)
        rows = {"hidden_states": random(b, 4, 8, 8), "encoder_hidden_states": random(b, 5, 16)}
        return make_call({**rows, "timestep": times, "pooled_projections": random(b, 16)})

    return Tiny(module, call)


def _wan() -> Tiny:
    module = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
    )

    def call(times: Tensor) -> Call:
        b = len(times)
        rows = {"hidden_states": random(b, 4, 2, 8, 8), "encoder_hidden_states": random(b, 7, 16)}
        return make_call({**rows, "timestep": times})

    return Tiny(module, call)


MODELS = {"unet": _unet, "dit": _dit, "sd3": _sd3, "wan": _wan}
TOKENS = 32
"""Of the video model's latents in `_wan`."""


def make(name: str, dtype: torch.dtype = torch.float32) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, call = MODELS[name]()
    return Tiny(module.eval().requires_grad_(False).to(dtype), lambda times: cast(call(times), dtype))


def cast(call: Call, dtype: torch.dtype) -> Call:
    """The call with its latents and text in another dtype; times stay as they are."""
    rows = {
        name: tensor.to(dtype) if tensor.is_floating_point() and call.role(name) != "time" else tensor
        for name, tensor in call.rows.items()
    }
    return Call(rows, call.clock, call.shared, call.constants, call.roles)


def opened(tiny: Tiny) -> tuple[tuple[TemporalLeaf, ...], TemporalProgram, Call]:
    """The temporal leaves, the program, and a call of one row."""
    example = tiny.call(torch.tensor([SCHEDULE[1]]))
    found = discover(tiny.module, example)
    return found, TemporalProgram(tiny.module, found), example


def skeleton(module: nn.Module, keep: Sequence[str]) -> nn.Module:
    """A copy with the parameters of everything but some leaves on the meta device."""
    copied = copy.deepcopy(module)
    for name, part in copied.named_modules():
        for own, parameter in list(part.named_parameters(recurse=False)):
            if name not in keep:
                setattr(part, own, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return copied


def cut(tiny: Tiny, program: TemporalProgram, plan: TemporalPlan, example: Call, rows: int | None) -> nn.Module:
    """A copy whose layers are looked up in float tables, built for calls of `rows` rows."""
    widths = {one.name: one.width for one in plan.lookups if one.storage is not None}
    tables = build_tables(program, example, plan.all_times, widths, rows=rows) if widths else {}
    copied = copy.deepcopy(tiny.module)
    replace_layers(copied, cut_leaves(copied, plan, tables))
    bind(copied, MomentHolder())
    return copied


def run_at(module: nn.Module, call: Call, moment: Moment) -> Tensor:
    now = timed(call, moment)
    with torch.no_grad():
        return run_timed(module, now.tensors(), now.constants)


def run(module: nn.Module, call: Call) -> Tensor:
    with torch.no_grad():
        return call_module(module, call)


def seen_by_hooks(module: nn.Module, call: Call, names: Sequence[str]) -> dict[str, Tensor]:
    """First output of each layer named, in a call of the whole model."""
    seen: dict[str, Tensor] = {}

    def keeping(name: str) -> Any:
        def keep(_: Any, __: Any, output: Tensor) -> None:
            seen.setdefault(name, output.clone())

        return keep

    parts = dict(module.named_modules())
    handles = [parts[name].register_forward_hook(keeping(name)) for name in names]
    run(module, call)
    for handle in handles:
        handle.remove()
    return seen
