"""Planned memory is that of real tensors: in float by the module itself, in integers by what quantizing it reports."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quant
from pipelines.denoiser import module_bytes
from pipelines.memory_plan import FORMATS, plan_memory
from pipelines.sizes import PUBLIC
from pipelines.structure import examine_public
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.layers import quantized_layers
from quant.temporal.discover import Discovery, examine


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_float_bytes_are_those_of_the_module(name: str) -> None:
    module, call = tiny_denoiser(name)
    made = plan_memory(module, examine(module, call))
    assert made.total["float32"] == module_bytes(module)
    assert made.parameters == sum(parameter.numel() for parameter in module.parameters())
    for form in FORMATS:
        assert made.total[form] == sum(part.bytes[form] for part in made.parts)
        assert made.freed[form] + made.per_request[form] == made.parts[0].bytes[form]
        assert made.resident[form] == made.total[form] - made.freed[form] + made.table_bytes
        assert made.lean[form] == made.resident[form] - made.per_request[form]
    assert made.total["float32"] > made.total["float16"]


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_bytes_are_those_of_the_layers_made(bits: int) -> None:
    module, call = tiny_denoiser("sd15")
    planned = plan_memory(module, Discovery(())).total["w8" if bits == 8 else "w4"]
    recipe = quant.Recipe.model_validate(
        {"format": 1, "name": "all", "weights": {"bits": bits}, "activations": {"bits": 32}}
    )
    statistics = quant.calibrate(module, lambda answer: answer(call))
    layers = quant.quantize_(module, recipe, statistics).report.layers
    held = sum(layer.bytes_after for layer in layers)
    if bits == 4:  # backends hold small integers in a byte each; packed they take half
        held -= sum(layer.weight.numel() // 2 for _, layer in quantized_layers(module))
    assert planned == pytest.approx(held, rel=0.01)


def test_parts_are_told_apart() -> None:
    module = nn.Sequential(
        nn.Linear(3, 5), nn.Conv2d(2, 4, 3), nn.Embedding(7, 2), nn.LayerNorm(6), nn.BatchNorm1d(4), nn.Linear(2, 2)
    )
    module[5].weight = nn.Parameter(torch.zeros(2, 2))
    parts = {part.name: part for part in plan_memory(module, Discovery(())).parts}
    assert [part.parameters for part in parts.values()] == [0, 15 + 5 + 4 + 2, 72 + 4, 14, 12 + 8]
    assert parts["linear"].bytes == {"float32": 104, "float16": 52, "w8": 19 + 28 + 28, "w4": 10 + 28 + 28}
    assert parts["embedding"].bytes["w4"] == 56, "embeddings stay float"
    assert parts["other"].bytes["float16"] == 2 * 20 + 4 * 8 + 8, "buffers keep their types"


def test_tied_weights_count_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].weight = module[1].weight
    assert plan_memory(module, Discovery(())).total["float32"] == 4 * (16 + 8)


def test_tables_grow_by_steps_and_shrink_by_storage() -> None:
    module, call = tiny_denoiser("qwen-image")
    found = examine(module, call)
    one, ten = (plan_memory(module, found, steps=steps).table_bytes for steps in (1, 10))
    assert ten == 10 * one > 0
    sizes = [plan_memory(module, found, storage=storage).table_bytes for storage in ("float32", "bfloat16", "int8")]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match="at least one step, not 0"):
        plan_memory(module, found, steps=0)


def test_qwen_image_loses_a_third_in_every_format() -> None:
    made = plan_memory(*examine_public("qwen-image"), storage="bfloat16")
    assert made.table_bytes == 50 * 4332 * 1024
    for form in FORMATS:
        assert 0.31 < 1 - made.resident[form] / made.total[form] < 0.34
    assert made.total["float16"] == pytest.approx(40.86e9, rel=1e-3)


def test_only_each_texts_own_weights_stay_for_models_of_class_e2() -> None:
    made = plan_memory(*examine_public("stable-diffusion-3-medium"))
    assert made.freed["w8"] == 0
    assert made.resident["w8"] > made.total["w8"] > made.lean["w8"]


def test_every_public_model_says_where_it_is_from() -> None:
    assert all(public.source.count("/") == 1 for public in PUBLIC.values())
