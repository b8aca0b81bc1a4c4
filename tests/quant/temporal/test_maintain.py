"""Recipes' ways with temporal layers, through the whole library: quantize, save, load, run by both backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

import quant
from quant.backends.call import call_module
from quant.recipe import Rule, Sensitive, Temporal, Weights
from quant.temporal.layers import FeatureLookup, FeatureStub, StepwiseLinear

TIMES = (901.0, 601.0, 301.0, 1.0)
ROLES: Any = {"timestep": "time", "encoder_hidden_states": "text"}
TIB = ("time_embedding.linear_1", "time_embedding.linear_2")


def make_unet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, norm_num_groups=8, attention_head_dim=8,
        )  # fmt: skip
    return module.eval().requires_grad_(False)


def make_empty() -> nn.Module:
    module = make_unet()
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return module


def make_call(times: list[float], seed: int = 0, branch: int = quant.COND) -> quant.Call:
    generator, rows = torch.Generator().manual_seed(seed), len(times)
    slots = torch.tensor([TIMES.index(time) if time in TIMES else 0 for time in times])
    clock = quant.StepClock(slots, torch.full((rows,), len(TIMES)), torch.full((rows,), branch))
    return quant.Call(
        {
            "sample": torch.randn(rows, 4, 8, 8, generator=generator),
            "timestep": torch.tensor(times),
            "encoder_hidden_states": torch.randn(rows, 5, 16, generator=generator),
        },
        clock,
        constants={"return_dict": False},
        roles=ROLES,
    )


def run(answer: Callable[[quant.Call], Tensor]) -> None:
    for seed, time in enumerate(TIMES):
        for branch in (quant.UNCOND, quant.COND):
            answer(make_call([time] * 4, seed, branch))


def recipe(maintenance: str, **temporal: Any) -> quant.Recipe:
    activations = {"steps": "each", "branches": "each"}
    told = {"name": "x", "activations": activations, "temporal": {"maintenance": maintenance, **temporal}}
    return quant.Recipe.model_validate(told)


def built(chosen: quant.Recipe) -> tuple[nn.Module, quant.Quantization]:
    module = make_unet()
    return module, quant.quantize_(module, chosen, quant.calibrate_for(module, run, chosen))


def saved(chosen: quant.Recipe, folder: Path) -> quant.Manifest:
    module, made = built(chosen)
    return quant.save(folder, module, made, chosen, model="m", model_sha256="a" * 64, calibration={}, version="0")


def opened(folder: Path, manifest: quant.Manifest, backend: str, cache: Path) -> Any:
    return quant.open_backend(backend, folder, manifest, make_empty, quant.Options(cache, threads=1))


def temporal_only(maintenance: str, **temporal: Any) -> quant.Recipe:
    """Everything unrelated to time stays float."""
    return recipe(maintenance, **temporal).model_copy(update={"scope": "temporal"})


WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "float": {},
    "tib": {"bits": 4},
    "cache": {"storage": "int8"},
    "select": {"bits": 4, "storage": "int4"},
}


@pytest.mark.parametrize("way", WAYS)
def test_backends_agree_on_what_was_saved(way: str, tmp_path: Path) -> None:
    manifest = saved(recipe(way, **WAYS[way]), tmp_path / "made")
    call = make_call([901.0, 301.0, 1.0])
    outputs = {name: opened(tmp_path / "made", manifest, name, tmp_path / "cache").run(call) for name in quant.BACKENDS}
    truth = call_module(make_unet(), call)
    assert quant.relative_error(outputs["openvino"], outputs["reference"]) < 0.03
    assert 0.0005 < quant.relative_error(outputs["reference"], truth) < 0.2
    assert manifest.temporal is not None
    assert manifest.temporal.schedule == TIMES


def test_a_cache_alone_is_exact_row_by_row(tmp_path: Path) -> None:
    manifest = saved(temporal_only("cache"), tmp_path / "made")
    reference = opened(tmp_path / "made", manifest, "reference", tmp_path)
    module = make_unet()
    for time in TIMES:
        call = make_call([time])
        assert torch.equal(reference.run(call), call_module(module, call))
    assert reference.fallbacks == 0


def test_cached_layers_are_gone_from_memory_and_from_the_artifact(tmp_path: Path) -> None:
    manifest = saved(temporal_only("cache"), tmp_path / "made")
    module = quant.load_into(make_empty(), tmp_path / "made", manifest)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (make_unet(), module))
    assert manifest.temporal is not None
    assert before - after == manifest.temporal.freed == manifest.temporal.parameters
    assert all(isinstance(module.get_submodule(name), FeatureStub) for name in TIB)
    assert isinstance(module.get_submodule("mid_block.resnets.0.time_emb_proj"), FeatureLookup)
    assert manifest.fallback_bytes > 0
    schemes = {layer.name: layer.scheme for layer in manifest.layers}
    assert schemes[TIB[0]] == "dropped: only looked-up layers read it"
    assert schemes["mid_block.resnets.0.time_emb_proj"] == "float32 table"


@pytest.mark.parametrize("backend", quant.BACKENDS)
def test_unknown_timesteps_are_computed_and_counted(backend: str, tmp_path: Path) -> None:
    manifest = saved(temporal_only("cache"), tmp_path / "made")
    executable = opened(tmp_path / "made", manifest, backend, tmp_path / "cache")
    call = make_call([601.0, 555.0, 77.0])
    answer = executable.run(call)
    assert quant.relative_error(answer, call_module(make_unet(), call)) < 0.01  # the fallback has 8-bit weights
    assert executable.fallbacks == 2
    executable.run(make_call([601.0, 301.0]))
    assert executable.fallbacks == 2
    executable.close()
    assert executable.weights_bytes == 0
    for times in ([601.0], [555.0]):
        with pytest.raises(quant.BackendError, match="was closed"):
            executable.run(make_call(times))
    assert executable.weights_bytes == 0


def test_layers_that_stay_are_nearer_when_reconstructed() -> None:
    errors = {}
    call = make_call([901.0, 601.0, 301.0, 1.0])
    truth = call_module(make_unet(), call)
    for rounding in ("nearest", "closed"):
        module, made = built(temporal_only("tib", bits=4, rounding=rounding))
        assert isinstance(module.get_submodule(TIB[0]), StepwiseLinear)
        assert made.plan is not None
        source = quant.FeatureSource(made.plan, None)
        (features,) = (quant.features_of(module, ["mid_block.resnets.0.time_emb_proj"], [call], source).values(),)
        (exact,) = (quant.features_of(make_unet(), ["mid_block.resnets.0.time_emb_proj"], [call]).values(),)
        errors[rounding] = quant.relative_error(next(iter(features)), next(iter(exact)))
    assert errors["closed"] < 0.5 * errors["nearest"]
    assert truth.shape == (4, 4, 8, 8)


def test_selection_takes_the_smaller_error_and_keeps_to_a_budget() -> None:
    _, free = built(temporal_only("select", bits=8, storage="int4"))
    _, tight = built(temporal_only("select", bits=4, budget_bytes=4000))
    for made in (free, tight):
        assert made.plan is not None
        assert made.plan.selection is not None
    assert free.plan is not None and free.plan.selection is not None  # for mypy
    for one in free.plan.selection.modules:
        for own, layers, table in zip(one.uses_tib, one.tib_errors, one.cache_errors, strict=True):
            assert all(used == (a < b) for used, a, b in zip(own, layers, table, strict=True))
    assert tight.plan is not None and tight.plan.selection is not None
    assert tight.plan.selection.bytes <= 4000
    with pytest.raises(quant.QuantError, match="need at least"):
        built(temporal_only("select", bits=4, budget_bytes=100))


def test_finer_weights_for_the_most_sensitive() -> None:
    coarse = recipe("cache").model_copy(update={"weights": Weights(bits=4)})
    spared = coarse.model_copy(update={"sensitive": Sensitive(macs=0.3, bytes=0.3, weights=Weights(bits=8))})
    call = make_call([601.0])
    truth = call_module(make_unet(), call)
    errors = []
    for chosen in (coarse, spared):
        module, made = built(chosen)
        assert made.plan is not None
        source = quant.FeatureSource(made.plan, None)
        timed = quant.timed(call, source.moment(call))
        errors.append(quant.relative_error(quant.run_timed(module, timed.tensors(), timed.constants), truth))
    assert errors[1] < 0.8 * errors[0]
    assert {form.weight_bits for form in made.forms.values()} == {4, 8}
    assert any("sensitive" in (layer.scheme or "") for layer in made.report.layers)


def test_rules_may_set_other_bits() -> None:
    rule = Rule(match=("mid_block.*",), weights=Weights(bits=8))
    chosen = recipe("cache").model_copy(update={"weights": Weights(bits=4), "rules": (rule,)})
    _, made = built(chosen)
    assert {form.weight_bits for name, form in made.forms.items() if name.startswith("mid_block")} == {8}
    assert {form.weight_bits for name, form in made.forms.items() if not name.startswith("mid_block")} == {4}


def test_a_model_without_a_timestep_is_quantized_all_the_same() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    module = Plain()
    calls = [quant.Call({"x": torch.randn(3, 4)}, quant.StepClock.unknown(3))]
    chosen = recipe("select")
    statistics = quant.calibrate_for(module, lambda answer: [answer(call) for call in calls], chosen)
    made = quant.quantize_(module, chosen, statistics)
    assert made.plan is None or not made.plan.lookups
    assert made.report.layers[0].scheme is not None


def test_features_of_classes_are_computed_once_a_request(tmp_path: Path) -> None:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: nn.Module = DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
                sample_size=8, num_embeds_ada_norm=10,
            )  # fmt: skip
        return module.eval().requires_grad_(False)

    def empty() -> nn.Module:
        module = make()
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
        return module

    def at(time: float, label: int) -> quant.Call:
        rows = {
            "hidden_states": torch.randn(1, 4, 8, 8),
            "timestep": torch.tensor([time]),
            "class_labels": torch.tensor([label]),
        }
        roles: Any = {"timestep": "time", "class_labels": "constant"}
        return quant.Call(rows, quant.StepClock.unknown(1), constants={"return_dict": False}, roles=roles)

    module, chosen = make(), temporal_only("cache")
    statistics = quant.calibrate_for(module, lambda answer: [answer(at(t, n)) for n in (1, 2) for t in TIMES], chosen)
    made = quant.quantize_(module, chosen, statistics)
    assert made.plan is not None
    assert {one.strategy for one in made.plan.lookups} == {"hoist"}
    facts: Any = {"model": "m", "model_sha256": "a" * 64, "calibration": {}, "version": "0"}
    manifest = quant.save(tmp_path / "made", module, made, chosen, **facts)
    for backend in quant.BACKENDS:
        executable = quant.open_backend(
            backend, tmp_path / "made", manifest, empty, quant.Options(tmp_path / "cache", threads=1)
        )
        for call in (at(TIMES[1], 7), at(TIMES[2], 7)):  # a class that was never calibrated on
            assert quant.relative_error(executable.run(call), quant.call_module(make(), call)) < 1e-4
        assert executable.fallbacks == 0


def test_weights_of_nan_are_refused() -> None:
    module = make_unet()
    chosen = recipe("select", bits=4)
    statistics = quant.calibrate_for(module, run, chosen)
    module.get_submodule(TIB[0]).weight.data[0] = torch.nan  # type: ignore[operator]
    with pytest.raises(quant.QuantError, match="NaN"):
        quant.quantize_(module, chosen, statistics)
    assert Temporal().maintenance == "none"
