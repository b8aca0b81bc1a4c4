"""Orders become artifacts: the same by the same order, whole or not at all, and learned on more than is observed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import quant
from jobs.profile import Defaults
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.tiny import save_tiny

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=3, guidance_scale=4.0)
PROMPTS = ["a b", "c", "b a", "c c", "a"]


def small_tfmq() -> quant.Recipe:
    """The shipped 4-bit recipe at a few iterations on a few rows."""
    recipe = quant.load_recipe("tfmq-w4a8")
    rounding = recipe.rounding.model_copy(update={"iterations": 4, "samples": 8, "batch": 4})
    return recipe.model_copy(update={"rounding": rounding})


def test_orders_are_deterministic_and_artifacts_say_how_they_were_made(tmp_path: Path) -> None:
    folder, told = save_tiny("stable-diffusion", tmp_path / "stable-diffusion"), []
    order = QuantizationOrder(folder, tmp_path / "one", quant.load_recipe("w8a8"), PROMPTS[:2], DEFAULTS)
    paths = [
        quantize_folder(order, lambda *now: told.append(now)),
        quantize_folder(replace(order, out=tmp_path / "other", observed=1)),
    ]
    one, other = (path.parent for path in paths)
    assert (one / "denoiser.safetensors").read_bytes() == (other / "denoiser.safetensors").read_bytes()
    first, second = (quant.read_manifest(made).model_copy(update={"build_seconds": None}) for made in (one, other))
    assert first == second
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other", "stable-diffusion"]
    assert (first.model, first.profile) == ("stable-diffusion", "w8a8")
    assert first.calibration == {"prompts": 2, "observed": 2, "seed": 0, **DEFAULTS.model_dump()}
    assert first.weights_bytes <= 0.30 * first.float_weights_bytes
    assert {what for what, _, _ in told} == {"reading", "calibrating", "writing"}


def test_rounding_learns_on_more_than_is_observed(tmp_path: Path) -> None:
    folder, told = save_tiny("stable-diffusion", tmp_path / "model"), list[tuple[str, int, int]]()
    few = QuantizationOrder(folder, tmp_path / "few", small_tfmq(), PROMPTS[:2], DEFAULTS)
    many = QuantizationOrder(folder, tmp_path / "many", small_tfmq(), PROMPTS, DEFAULTS, observed=2)
    quantize_folder(few)
    quantize_folder(many, lambda *now: told.append(now))
    assert {total for what, _, total in told if what == "calibrating"} == {2}
    assert {total for what, _, total in told if what == "drawing more to learn on"} == {3}
    assert quant.read_manifest(many.out).calibration["observed"] == 2
    one, other = (load_file(order.out / "denoiser.safetensors") for order in (few, many))
    assert one.keys() == other.keys()
    changed = {name.rpartition(".")[2] for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"integers"}, "grids come from what is observed, and integers from all"


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny("stable-diffusion", tmp_path / "model")
    whole = QuantizationOrder(folder, tmp_path / "whole", small_tfmq(), ["a b"], DEFAULTS)
    quantize_folder(whole)
    save, saved = quant.Stages.save, list[str]()

    def save_twice(self: quant.Stages, name: str, *rest: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(name)
        save(self, name, *rest)

    killed = replace(whole, out=tmp_path / "killed")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(quant.Stages, "save", save_twice)
        quantize_folder(killed)
    assert not killed.out.exists(), "nothing half-saved"
    again = list[str]()

    def save_and_tell(self: quant.Stages, name: str, *rest: Any) -> None:
        again.append(name)
        save(self, name, *rest)

    monkeypatch.setattr(quant.Stages, "save", save_and_tell)
    quantize_folder(killed)
    assert not set(saved) & set(again), "finished stages are not done again"
    for name in ("denoiser.safetensors", "temporal.safetensors"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["killed", "model", "whole"]


def test_weights_of_nan_leave_nothing_behind(tmp_path: Path) -> None:
    folder = save_tiny("stable-diffusion", tmp_path / "model")
    file = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["mid_block.resnets.0.conv1.weight"][0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(quant.QuantError, match="NaN or infinity"):
        quantize_folder(QuantizationOrder(folder, tmp_path / "made", small_tfmq(), ["a b"], DEFAULTS))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
