"""The shipped model paints what prompts say, and its w8a8 artifact is truly 8-bit and near to float."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import quant
from pipelines.denoiser import Denoiser, TorchDenoiser
from pipelines.load import Components, load_components, load_denoiser
from pipelines.quantized import QuantizedDenoiser, load_quantized
from zoo import build
from zoo.accuracy import painter, score, unseen

FOLDER = build.ZOO / "models" / build.MODEL
ARTIFACT = build.ZOO / "artifacts" / build.MODEL / "w8a8"


@pytest.fixture(scope="module")
def components() -> Components:
    return load_components(FOLDER)


@pytest.fixture(scope="module")
def w8a8(components: Components, tmp_path_factory: pytest.TempPathFactory) -> QuantizedDenoiser:
    return load_quantized(build.card_of(ARTIFACT), components, build.Means(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("things", "least"), [(1, 0.90), (2, 0.70)])
def test_unseen_prompts_are_painted_right(things: int, least: float) -> None:
    pipe = DiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    found = score(unseen(things, 250), painter(pipe))
    assert found.accuracy >= least, found


def test_w8a8_is_near_to_float(components: Components, w8a8: QuantizedDenoiser) -> None:
    denoisers: dict[str, Denoiser] = {"float": TorchDenoiser("float", load_denoiser(components)), "w8a8": w8a8}
    reference, near = build.measure(components, denoisers, 24)
    assert near.psnr_db >= 30
    wrong = [sum(not row.right for row in each) for each in (near.each, reference.each)]
    assert wrong[0] <= wrong[1] + 1, "at most one picture on the edge of the checker may tip over"


def test_the_manifest_tells_of_the_whole_measurement() -> None:
    manifest = json.loads((ARTIFACT / "manifest.json").read_text(encoding="utf-8"))
    fidelity = manifest["fidelity"]
    assert fidelity["prompts"] >= 256
    assert fidelity["psnr_db"] >= 30
    assert abs(fidelity["prompt_accuracy"] - fidelity["float_prompt_accuracy"]) <= 0.01
    stored = sum(path.stat().st_size for path in Path(ARTIFACT).glob("*.safetensors"))
    assert manifest["weights_bytes"] <= 0.30 * manifest["float_weights_bytes"]
    assert stored <= 0.30 * manifest["float_weights_bytes"]


def test_openvino_agrees_with_the_reference_in_int8_kernels(
    components: Components, w8a8: QuantizedDenoiser, tmp_path: Path
) -> None:
    reference = load_quantized(build.card_of(ARTIFACT), components, build.Means(tmp_path), backend="reference")
    calls = build.typical_calls(components, 20)
    errors = [quant.relative_error(w8a8.run(call), reference.run(call)) for call in calls]
    assert sum(errors) / len(errors) <= 0.01
    assert max(errors) <= 0.02, errors
    share = w8a8.executable.int8_share(w8a8.library_call(calls[0]))  # type: ignore[attr-defined]
    assert share >= 0.90
    assert torch.isfinite(w8a8.run(calls[0])).all()
