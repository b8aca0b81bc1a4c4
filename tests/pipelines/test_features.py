"""Temporal features of profiles: by module and step, float's own for an exact cache, off for rounded layers."""

from __future__ import annotations

from pathlib import Path

import torch

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults, ProfileCard
from pipelines.features import steps_of, temporal_features
from pipelines.load import load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.temporal import compare_features
from pipelines.tiny import save_tiny

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=3, guidance_scale=4.0)


def card(folder: Path, name: str, root: Path) -> ProfileCard:
    out = root / name
    quantize_folder(QuantizationOrder(folder, out, quant.load_recipe(name).fast(), ["a b"], DEFAULTS))
    return Manifest.read(out / "manifest.json").card(out)


def test_an_exact_cache_keeps_features_and_rounding_does_not(tmp_path: Path) -> None:
    folder = save_tiny("stable-diffusion", tmp_path / "model")
    components = load_components(folder)
    cards = [card(folder, name, tmp_path) for name in ("tfmq-w4a8-cache", "rtn-w4a8")]
    found = temporal_features(components, cards, "a b", DEFAULTS)
    exact, cached, rounded = (found[name] for name in ("float", "tfmq-w4a8-cache", "rtn-w4a8"))
    assert exact.keys() == cached.keys() == rounded.keys()
    assert all(name.endswith("time_emb_proj") and feature.shape[0] == 3 for name, feature in exact.items())
    for name, feature in exact.items():
        torch.testing.assert_close(cached[name], feature, rtol=1e-5, atol=1e-5)
    told = compare_features(found)
    worst = [told[name].cosine_worst for name in ("tfmq-w4a8-cache", "rtn-w4a8")]
    assert worst[0] is not None and worst[1] is not None
    assert worst[0] > 0.99999 > worst[1] > 0.9


def test_steps_are_those_of_the_schedule(tmp_path: Path) -> None:
    components = load_components(save_tiny("stable-diffusion", tmp_path / "model"))
    calls = steps_of(components, load_denoiser(components), "a b", DEFAULTS)
    times = [float(call.timestep) for call in calls if call.timestep is not None]
    assert len(times) == 3
    assert times == sorted(times, reverse=True)
    assert all(call.count == 1 and int(call.clock.branch) == quant.COND for call in calls)
