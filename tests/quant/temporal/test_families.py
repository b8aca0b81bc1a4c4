"""Temporal modules of every family against a table written down by hand; cached models against the same uncached.

The table has names, classes, parameters of public sizes and bytes of a step, as read in the models' code before there
was a search; families that were not in it then have our own numbers.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.examples import example_call
from pipelines.sizes import PUBLIC
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends.call import Call, call_module
from quant.backends.moment import run_timed, timed
from quant.clock import MomentHolder
from quant.layers import bind
from quant.temporal.discover import Discovery, discover, examine
from quant.temporal.features import FeatureSource
from quant.temporal.layers import install
from quant.temporal.plan import TemporalPlan, make_plan
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import build_tables

# a line: category, whether others than temporal modules read it, and the name; "*" is a number
UNET = """
E0 - time_embedding.linear_1
E0 - time_embedding.linear_2
E0 F down_blocks.*.resnets.*.time_emb_proj
E0 F mid_block.resnets.*.time_emb_proj
E0 F up_blocks.*.resnets.*.time_emb_proj
"""
SDXL = (
    UNET.replace("E0 F", "E2 F")
    + """
E2 - add_embedding.linear_1
E2 - add_embedding.linear_2
"""
)
PIXART = """
E0 - adaln_single.emb.timestep_embedder.linear_1
E0 F adaln_single.emb.timestep_embedder.linear_2
E0 F adaln_single.linear
"""
PIXART_SIZES = (
    PIXART.replace("E0 F adaln_single.linear", "E1 F adaln_single.linear")
    + """
E1 - adaln_single.emb.resolution_embedder.linear_1
E1 F adaln_single.emb.resolution_embedder.linear_2
E1 - adaln_single.emb.aspect_ratio_embedder.linear_1
E1 F adaln_single.emb.aspect_ratio_embedder.linear_2
"""
)
DIT = """
E0 - transformer_blocks.*.norm1.emb.timestep_embedder.linear_1
E0 - transformer_blocks.*.norm1.emb.timestep_embedder.linear_2
E1 - transformer_blocks.*.norm1.emb.class_embedder.embedding_table
E1 F transformer_blocks.*.norm1.linear
E1 F proj_out_1
"""
SD3 = """
E0 - time_text_embed.timestep_embedder.linear_1
E0 - time_text_embed.timestep_embedder.linear_2
E2 - time_text_embed.text_embedder.linear_1
E2 - time_text_embed.text_embedder.linear_2
E2 F transformer_blocks.*.norm1.linear
E2 F transformer_blocks.*.norm1_context.linear
E2 F norm_out.linear
"""
SCHNELL = SD3 + "E2 F single_transformer_blocks.*.norm.linear\n"
FLUX = (
    SCHNELL
    + """
E1 - time_text_embed.guidance_embedder.linear_1
E1 - time_text_embed.guidance_embedder.linear_2
"""
)
FLUX2 = """
E0 - time_guidance_embed.timestep_embedder.linear_1
E0 - time_guidance_embed.timestep_embedder.linear_2
E1 - time_guidance_embed.guidance_embedder.linear_1
E1 - time_guidance_embed.guidance_embedder.linear_2
E1 F double_stream_modulation_img.linear
E1 F double_stream_modulation_txt.linear
E1 F single_stream_modulation.linear
E1 F norm_out.linear
"""
CHROMA = """
E0 - distilled_guidance_layer.in_proj
E0 - distilled_guidance_layer.layers.*.linear_1
E0 - distilled_guidance_layer.layers.*.linear_2
E0 - distilled_guidance_layer.norms.*
E0 F distilled_guidance_layer.out_proj
"""
QWEN = """
E0 - time_text_embed.timestep_embedder.linear_1
E0 - time_text_embed.timestep_embedder.linear_2
E0 F transformer_blocks.*.img_mod.*
E0 F transformer_blocks.*.txt_mod.*
E0 F norm_out.linear
"""
LTX = """
E0 - time_embed.emb.timestep_embedder.linear_1
E0 F time_embed.emb.timestep_embedder.linear_2
E0 F time_embed.linear
"""
WAN = """
E0 - condition_embedder.time_embedder.linear_1
E0 F condition_embedder.time_embedder.linear_2
E0 F condition_embedder.time_proj
"""
Z_IMAGE = """
E0 - t_embedder.mlp.*
E0 F noise_refiner.*.adaLN_modulation.*
E0 F layers.*.adaLN_modulation.*
E0 F all_final_layer.2-1.adaLN_modulation.*
"""
COGVIDEOX = """
E0 - time_embedding.linear_1
E0 - time_embedding.linear_2
E0 F transformer_blocks.*.norm1.linear
E0 F transformer_blocks.*.norm2.linear
E0 F norm_out.linear
"""
HUNYUAN = (
    FLUX
    + """
E0 - context_embedder.time_text_embed.timestep_embedder.linear_1
E0 F context_embedder.time_text_embed.timestep_embedder.linear_2
"""
)
MINIMAX = """
E0 - time_embedder.linear_1
E0 - time_embedder.linear_2
E0 F transformer_blocks.*.adaln_proj.linear
E0 F norm_out.linear
"""
UNCLASSED = UNET
CLASSED = UNET.replace("E0 F", "E1 F") + "E1 - class_embedding\n"
LCM = UNET.replace("E0", "E1") + "E1 - time_embedding.cond_proj\n"

TINY = {
    "unet": UNCLASSED,
    "unet-class": CLASSED,
    "sd15": UNET,
    "lcm": LCM,
    "sdxl": SDXL,
    "pixart-sigma": PIXART,
    "pixart-sizes": PIXART_SIZES,
    "dit": DIT,
    "sd3": SD3,
    "sd35-medium": SD3,
    "flux": FLUX,
    "flux2": FLUX2,
    "chroma": CHROMA,
    "qwen-image": QWEN,
    "sana": LTX,
    "z-image": Z_IMAGE,
    "wan": WAN,
    "wan-ti2v": WAN,
    "ltx": LTX,
    "ltx-i2v": LTX,
    "cogvideox": COGVIDEOX,
    "hunyuan-video": HUNYUAN,
    "minimax-h3": MINIMAX,
}

# temporal and all parameters in millions, KiB of a step's tables in 16 bits; at the table's rounding
SIZES = {
    "stable-diffusion-1.5": (UNET, 27.9, 860, 39.4),
    "stable-diffusion-xl": (SDXL, 24.9, 2570, 26.9),
    # The table counts 6D + D = 15.8 KiB: the sum of the three embedders. They are stored apart, another D.
    "pixart-alpha": (PIXART_SIZES, 10.1, 611, 18.0),
    "pixart-sigma": (PIXART, 9.59, 611, 15.8),
    # The table counts 271M: it leaves out the 28 embedding tables of classes, 32.3M.
    "dit-xl-2": (DIT, 304, 750, 382),
    "stable-diffusion-3-medium": (SD3, 683, 2030, 858),
    "stable-diffusion-3.5-medium": (SD3, 776, 2240, 975),
    "stable-diffusion-3.5-large": (SD3, 2700, 8060, 2160),
    "flux.1-dev": (FLUX, 3280, 11900, 2060),
    "flux.1-schnell": (SCHNELL, 3270, 11900, 2060),
    "flux.2-dev": (FLUX2, 720, 32200, 204),
    "chroma1-hd": (CHROMA, 278, 8900, 2060),
    "qwen-image": (QWEN, 6830, 20400, 4330),
    "sana-1.6b": (LTX, 35.7, 1600, 30.6),
    "z-image": (Z_IMAGE, 128, 6150, 968),
    "wan2.1-1.3b": (WAN, 16.9, 1420, 21.0),
    "wan2.1-14b": (WAN, 185, 14300, 70.0),
    "wan2.2-ti2v-5b": (WAN, 66.9, 5000, 42.0),
    "ltx-video": (LTX, 29.9, 1920, 28.0),
    "cogvideox-2b": (COGVIDEOX, 358, 1690, 1360),
    "cogvideox-5b": (COGVIDEOX, 799, 5570, 3040),
    "hunyuan-video": (HUNYUAN, 3460, 12800, 2180),
    "minimax-h3": (MINIMAX, 13100, 33100, 9470),
}


def lines(found: Discovery) -> set[str]:
    """What was found in the table's form."""
    pattern = re.compile(r"(?<=\.)\d+(?=\.|$)")
    return {f"{leaf.category} {'F' if leaf.frontier else '-'} {pattern.sub('*', leaf.name)}" for leaf in found.leaves}


def wanted(table: str) -> set[str]:
    return set(filter(None, table.split("\n")))


def rounded(number: float) -> float:
    return float(f"{number:.3g}")


def test_the_table_has_every_family() -> None:
    assert TINY.keys() == TINY_DENOISERS.keys()
    assert SIZES.keys() == PUBLIC.keys()


@pytest.mark.parametrize("name", TINY)
def test_modules_and_classes_are_the_tables(name: str) -> None:
    found = examine(*tiny_denoiser(name))
    assert not found.unknown
    assert lines(found) == wanted(TINY[name])


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_public_models_are_the_tables(name: str) -> None:
    table, temporal, total, kilobytes = SIZES[name]
    module = PUBLIC[name].build()
    found = examine(module, example_call(module, per_token=PUBLIC[name].per_token))
    assert lines(found) == wanted(table)
    assert rounded(sum(leaf.parameters for leaf in found.leaves) / 1e6) == temporal
    assert rounded(sum(parameter.numel() for parameter in module.parameters()) / 1e6) == rounded(total)
    assert rounded(sum(2 * leaf.width for leaf in found.leaves if leaf.frontier) / 1024) == rounded(kilobytes)


def test_leaves_that_each_text_needs_again_are_told() -> None:
    assert examine(*tiny_denoiser("qwen-image")).per_request == frozenset()
    sdxl = examine(*tiny_denoiser("sdxl"))
    assert sdxl.per_request == {leaf.name for leaf in sdxl.leaves}
    hunyuan = examine(*tiny_denoiser("hunyuan-video"))
    kept = {leaf.name for leaf in hunyuan.leaves} - hunyuan.per_request
    assert kept == {f"context_embedder.time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)}


def cached(module: nn.Module, call: Call, schedule: tuple[float, ...]) -> tuple[nn.Module, TemporalPlan, FeatureSource]:
    """The module with float32 tables built for calls of this many rows, and what finds the moment of its calls."""
    leaves = discover(module, call)
    program = TemporalProgram(copy.deepcopy(module), leaves)
    time = next(name for name in call.rows if call.role(name) == "time")
    plan = make_plan(program, leaves, call, {time: schedule})
    widths = {one.name: one.width for one in plan.lookups if one.storage}
    tables = build_tables(program, call, {time: schedule}, widths, rows=call.rows[time].numel())
    cut = copy.deepcopy(module)
    install(cut, plan, tables)
    bind(cut, MomentHolder())
    return cut, plan, FeatureSource(plan, lambda: program, exact=True)


def times_of(call: Call) -> tuple[float, ...]:
    times = call.timestep
    assert times is not None
    return tuple(sorted(set(times.double().flatten().tolist())))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", TINY)
def test_a_cached_model_answers_bit_for_bit(name: str, rows: int) -> None:
    module, call = tiny_denoiser(name, rows=rows)
    _, many = tiny_denoiser(name, rows=4)
    schedule = tuple(sorted({*times_of(call), *times_of(many)}, reverse=True))
    cut, plan, source = cached(module, call, schedule)
    assert not plan.kept
    with torch.no_grad():
        asked = timed(call, source.moment(call))
        assert torch.equal(run_timed(cut, asked.tensors(), asked.constants), call_module(module, call))
    gone = sum(one.numel() for one in module.parameters()) - sum(one.numel() for one in cut.parameters())
    assert gone == sum(leaf.parameters for leaf in discover(module, call)) == plan.freed + plan.hoisted


def test_tables_answer_unless_the_text_or_a_constant_is_new() -> None:
    for name, fallbacks, hoists in (("qwen-image", 0, 0), ("dit", 1, 0), ("flux", 0, 2), ("wan-ti2v", 0, 0)):
        module, call = tiny_denoiser(name, rows=2)
        if name == "dit":
            call.rows["class_labels"][1] = (call.rows["class_labels"][0] + 1) % 10
        _, _, source = cached(module, call, times_of(call))
        source.moment(call)
        assert (name, source.fallbacks, source.hoists) == (name, fallbacks, hoists)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_a_qwen_image_shaped_model_loses_a_third_of_its_memory() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.quant.temporal.shrink"]
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=root, env=fixed, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    before, whole, rest, share = json.loads(done.stdout)
    assert share == pytest.approx(1 / 3, abs=0.02)
    assert (whole - rest) / (whole - before) == pytest.approx(share, abs=0.04)
