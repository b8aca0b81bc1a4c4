"""The shipped models paint what prompts say, and their artifacts are whole, small, and near to float."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quant
from jobs.profile import Fidelity
from pipelines.denoiser import Denoiser, TorchDenoiser
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_components, load_denoiser
from pipelines.quantized import QuantizedDenoiser, load_quantized, open_reference
from zoo import build
from zoo.accuracy import painter, score, unseen

FOLDER = build.ZOO / "models" / "shapes-unet"
ARTIFACT = build.ZOO / "artifacts" / "shapes-unet" / "w8a8"
SHIPPED = [(model, name) for model, names in build.SHIPPED.items() for name in names]


@pytest.fixture(scope="module")
def components() -> Components:
    return load_components(FOLDER)


@pytest.fixture(scope="module")
def w8a8(components: Components, tmp_path_factory: pytest.TempPathFactory) -> QuantizedDenoiser:
    return load_quantized(build.card_of(ARTIFACT), components, build.Means(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("model", "count"), [("shapes-unet", 250), ("shapes-dit", 75)])
@pytest.mark.parametrize(("things", "least"), [(1, 0.90), (2, 0.70)])
def test_unseen_prompts_are_painted_right(model: str, count: int, things: int, least: float) -> None:
    found = score(unseen(things, count), painter(build.ZOO / "models" / model))
    assert found.accuracy >= least, found


@pytest.mark.parametrize("model", build.SHIPPED)
def test_models_are_small_and_plain(model: str) -> None:
    folder = build.ZOO / "models" / model
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= (40_000_000 if model == "shapes-video" else 25_000_000)
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_w8a8_is_near_to_float(components: Components, w8a8: QuantizedDenoiser) -> None:
    denoisers: dict[str, Denoiser] = {"float": TorchDenoiser("float", load_denoiser(components)), "w8a8": w8a8}
    reference, near = build.measure(components, denoisers, 24)
    assert near.psnr_db is not None and near.psnr_db >= 30
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
    (call,) = library_calls(type(components.skeleton), calls[0])
    share = w8a8.executable.int8_share(plain(call))  # type: ignore[attr-defined]
    assert share >= 0.90
    assert torch.isfinite(w8a8.run(calls[0])).all()


SHARES = {"w8a8": 0.30, "w4a8": 0.17, "w4a32": 0.17}
"""The most that a shipped artifact may store, as a share of the float32 weights."""


@pytest.mark.parametrize(("model", "name"), SHIPPED)
def test_every_shipped_artifact_is_whole_small_and_measured(model: str, name: str) -> None:
    folder, components = build.ZOO / "artifacts" / model / name, load_components(build.ZOO / "models" / model)
    manifest = quant.read_manifest(folder)
    quant.verify(folder, manifest)
    assert quant.Recipe.model_validate(manifest.recipe) == quant.load_recipe(name), "built by the recipe as it is now"
    stored = sum(path.stat().st_size for path in folder.glob("denoiser.safetensors"))
    share = next((most for bits, most in SHARES.items() if bits in name), None)
    assert share is None or stored <= share * manifest.float_weights_bytes
    assert ("cfg" in name) == (manifest.guidance is not None)
    card = build.card_of(folder)
    module, _ = open_reference(card, components)
    assert all(not parameter.is_meta for parameter in module.parameters())
    assert manifest.fidelity is not None
    fidelity = Fidelity.model_validate(manifest.fidelity)
    assert fidelity.prompts >= 256
    assert fidelity.psnr_db is not None and fidelity.psnr_db >= 30
    assert fidelity.seconds is not None and fidelity.float_seconds is not None
    assert fidelity.prompt_accuracy is not None and fidelity.float_prompt_accuracy is not None
    assert fidelity.prompt_accuracy >= fidelity.float_prompt_accuracy - 0.02


@pytest.mark.parametrize("name", ["tfmq-w4a8", "tfmq-w4a8-tib"])
def test_backends_agree_on_calls_of_known_and_unknown_steps(name: str, components: Components, tmp_path: Path) -> None:
    card = build.card_of(ARTIFACT.parent / name)
    fast, slow = (
        load_quantized(card, components, build.Means(tmp_path), backend=backend) for backend in quant.BACKENDS
    )
    calls = build.typical_calls(components, 6)
    between = [replace(call, timestep=call.timestep - 13) for call in calls[1:3]]
    for call in [*calls, *between]:
        assert quant.relative_error(fast.run(call), slow.run(call)) <= 0.03
    tables = name != "tfmq-w4a8-tib"
    assert fast.fallbacks == slow.fallbacks == (sum(call.rows for call in between) if tables else 0)
