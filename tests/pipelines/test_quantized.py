"""A model folder becomes an artifact and the artifact a denoiser, for UNets and transformers, by every backend."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults, ProfileCard
from pipelines.denoiser import DenoiserCall, TorchDenoiser
from pipelines.families import UnsupportedModel
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import QuantizedDenoiser, backend_on, empty_denoiser, load_profile, load_quantized
from pipelines.session import DirectSeams, Order, Session
from pipelines.tiny import save_tiny

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=3, guidance_scale=4.0)
ORDER = Order(prompt="a b", negative_prompt="", width=32, height=32, steps=3, guidance=4.0, seeds=[3])


def build(family: str, root: Path) -> Path:
    folder = save_tiny(family, root / family)
    order = QuantizationOrder(folder, root / "artifact", quant.load_recipe("w8a8"), ["a b", "c"], DEFAULTS)
    return quantize_folder(order).parent.parent


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny UNet model and its artifact."""
    return build("stable-diffusion", tmp_path_factory.mktemp("unet"))


def open_parts(root: Path, family: str = "stable-diffusion") -> tuple[Components, ProfileCard, quant.Options]:
    card = Manifest.read(root / "artifact" / "manifest.json").card(root / "artifact")
    return load_components(root / family), card, quant.Options(root / "cache", threads=1)


class Recorder(DirectSeams):
    """Keeps the calls of a session."""

    def __init__(self, denoiser: TorchDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        return super().denoise(call)


def calls_of(components: Components) -> tuple[TorchDenoiser, list[DenoiserCall]]:
    denoiser = TorchDenoiser("float", load_denoiser(components))
    seams = Recorder(denoiser)
    Session(components, ORDER, seams).draw()
    return denoiser, seams.calls


def errors_of(denoiser: QuantizedDenoiser, truth: TorchDenoiser, calls: list[DenoiserCall]) -> float:
    return max(quant.relative_error(denoiser.run(call), truth.run(call)) for call in calls)


def test_a_unet_runs_by_both_backends(unet: Path) -> None:
    components, card, means = open_parts(unet)
    truth, calls = calls_of(components)
    fast = load_quantized(card, components, means)
    slow = load_quantized(card, components, means, backend="reference")
    assert (fast.name, fast.backend, slow.backend) == ("w8a8", "openvino", "reference")
    assert 0.001 < errors_of(slow, truth, calls) < 0.05
    assert errors_of(fast, truth, calls) < 0.05
    executable = fast.executable
    assert hasattr(executable, "int8_share")
    (call,) = library_calls(type(components.skeleton), calls[0])
    assert executable.int8_share(plain(call)) > 0.85
    fast.close()


def test_a_transformer_runs_by_both_backends(tmp_path: Path) -> None:
    components, card, means = open_parts(build("pixart-sigma", tmp_path), "pixart-sigma")
    truth, calls = calls_of(components)
    for backend in quant.BACKENDS:
        assert 0.0001 < errors_of(load_quantized(card, components, means, backend=backend), truth, calls) < 0.05


def test_rows_of_several_times_and_texts_share_a_call(unet: Path) -> None:
    components, card, means = open_parts(unet)
    _, calls = calls_of(components)
    denoiser = load_quantized(card, components, means)
    together = torch.cat([denoiser.run(call) for call in calls[:2]])
    one = DenoiserCall(
        sample=torch.cat([call.sample for call in calls[:2]]),
        timestep=torch.cat([call.timestep for call in calls[:2]]),
        step=torch.cat([call.step for call in calls[:2]]),
        total_steps=torch.cat([call.total_steps for call in calls[:2]]),
        branch=torch.cat([call.branch for call in calls[:2]]),
        inputs={name: torch.cat([call.inputs[name] for call in calls[:2]]) for name in calls[0].inputs},
        constants=calls[0].constants,
    )
    assert torch.equal(denoiser.run(one), together)


@pytest.mark.parametrize(
    ("device", "named", "runs"),
    [("cpu", "openvino", "openvino"), ("cpu", "reference", "reference"), ("cuda:0", "openvino", "cuda")],
)
def test_the_device_decides_what_runs_an_artifact(device: str, named: str, runs: str) -> None:
    assert backend_on(torch.device(device), named) == runs


def test_a_backend_that_was_asked_for_runs_an_artifact_of_another(unet: Path) -> None:
    components, card, means = open_parts(unet)
    assert (card.backend, load_profile(card, components, means).backend) == ("openvino", "openvino")
    assert load_profile(card, components, means, backend="reference").backend == "reference"


def test_an_artifact_of_another_model_is_refused(unet: Path, tmp_path: Path) -> None:
    _, card, means = open_parts(unet)
    other = load_components(save_tiny("stable-diffusion", tmp_path / "other", seed=1))
    with pytest.raises(UnsupportedModel, match="made from other weights"):
        load_quantized(card, other, means)


def test_a_broken_artifact_is_refused(unet: Path, tmp_path: Path) -> None:
    components, card, means = open_parts(unet)
    broken = Path(shutil.copytree(unet / "artifact", tmp_path / "broken"))
    (broken / "denoiser.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"profile w8a8 of stable-diffusion: .*SHA-256 differs"):
        load_quantized(card.model_copy(update={"artifact": broken}), components, means)
    with pytest.raises(UnsupportedModel, match="has no artifact"):
        load_quantized(card.model_copy(update={"artifact": None}), components, means)
    with pytest.raises(UnsupportedModel, match="no backend 'torch'"):
        load_quantized(card, components, means, backend="torch")


def test_float_weights_are_never_read(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components, card, means = open_parts(unet)
    monkeypatch.setattr(type(components.skeleton), "from_pretrained", lambda *given, **named: 1 / 0)
    denoiser = load_quantized(card, components, means, backend="reference")
    assert denoiser.weights_bytes == quant.read_manifest(unet / "artifact").memory_bytes


def test_lists_with_an_entry_per_row_are_split(unet: Path) -> None:
    components, _, _ = open_parts(unet)
    _, calls = calls_of(components)

    class Spy:
        weights_bytes = 0
        fallbacks = 0
        seen: list[quant.Call]

        def __init__(self) -> None:
            self.seen = []

        def run(self, call: quant.Call) -> Tensor:
            self.seen.append(call)
            return call.rows["sample"]

        def close(self) -> None:
            self.seen.clear()

    spy = Spy()
    call = DenoiserCall(
        calls[0].sample, calls[0].timestep, calls[0].step, calls[0].total_steps, calls[0].branch,
        inputs=calls[0].inputs, constants={"img_shapes": [[1, 2], [3, 4]]},
    )  # fmt: skip
    denoiser = QuantizedDenoiser("w8a8", "openvino", type(components.skeleton), spy)
    assert torch.equal(denoiser.run(call), call.sample)
    assert [part.constants["img_shapes"] for part in spy.seen] == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize("backend", quant.BACKENDS)
def test_steps_that_no_table_knows_are_served_and_counted(backend: str, tmp_path: Path) -> None:
    folder = save_tiny("stable-diffusion", tmp_path / "model")
    recipe = quant.load_recipe("tfmq-w4a8-cache").fast()
    quantize_folder(QuantizationOrder(folder, tmp_path / "artifact", recipe, ["a b"], DEFAULTS))
    card = Manifest.read(tmp_path / "artifact" / "manifest.json").card(tmp_path / "artifact")
    components = load_components(folder)
    denoiser = load_quantized(card, components, quant.Options(tmp_path / "cache", threads=1), backend=backend)
    Session(components, ORDER, DirectSeams(denoiser)).draw()
    assert denoiser.fallbacks == 0
    Session(components, replace(ORDER, steps=7), DirectSeams(denoiser)).draw()
    assert denoiser.fallbacks > 0


def test_a_rotated_artifact_is_served_by_both_backends(tmp_path: Path) -> None:
    folder, text = save_tiny("pixart-sigma", tmp_path / "model"), quant.load_recipe("w8a8").model_dump()
    changes = {"rotation": {"method": "hadamard", "block": 16}, "smoothing": {"method": "search"}}
    recipe = quant.Recipe.model_validate({**text, "name": "turned", **changes})
    quantize_folder(QuantizationOrder(folder, tmp_path / "artifact", recipe, ["a b", "c"], DEFAULTS))
    card = Manifest.read(tmp_path / "artifact" / "manifest.json").card(tmp_path / "artifact")
    components, means = load_components(folder), quant.Options(tmp_path / "cache", threads=1)
    manifest, (truth, calls) = quant.read_manifest(tmp_path / "artifact"), calls_of(components)
    assert manifest.rotation is not None
    assert {"online", "folded"} <= {layer.rotation for layer in manifest.rotation.layers}
    assert manifest.transforms
    for backend in quant.BACKENDS:
        assert 1e-4 < errors_of(load_quantized(card, components, means, backend=backend), truth, calls) < 0.05


def test_an_artifact_that_is_read_while_a_model_is_loaded_keeps_its_values(
    unet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components, card, _ = open_parts(unet)
    assert card.artifact is not None
    artifact, kind = card.artifact, cast("Any", type(components.skeleton))
    make, inside, go_on = kind.from_config, threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        if not inside.is_set():  # the first is diffusers' own, which makes modules without weights, whoever asks
            inside.set()
            assert go_on.wait(60)
        return make(*arguments, **options)

    monkeypatch.setattr(kind, "from_config", slow)
    with ThreadPoolExecutor() as threads:
        loading = threads.submit(load_denoiser, components)
        assert inside.wait(60)
        manifest = quant.read_manifest(artifact)
        reading = threads.submit(lambda: quant.load_into(empty_denoiser(components), artifact, manifest))
        assert not wait([reading], timeout=1).done
        go_on.set()
        both = loading.result(60), reading.result(60)
    assert not any(tensor.is_meta for module in both for tensor in module.state_dict().values())
