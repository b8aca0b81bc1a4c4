"""Rotated artifacts: small, read back, run alike by both backends; rules by the layers' own names; temporal layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends import openvino as engine
from quant.backends.call import call_module
from quant.recipe import Recipe, parse
from quant.rotation.attach import transformed_layers

TFMQ = '[temporal]\nmaintenance = "select"\nstorage = "int8"\n[activations]\nsteps = "each"\n'
HADAMARD = '[rotation]\nmethod = "hadamard"\nblock = 16\n[smoothing]\nmethod = "fixed"\n'
GREEDY = '[rotation]\nmethod = "greedy"\nblock = 8\n'


class Made(NamedTuple):
    """An artifact of a tiny denoiser, what opens it, and a call with the float model's answer."""

    folder: Path
    manifest: quant.Manifest
    quantized: nn.Module
    empty: Callable[[], nn.Module]
    call: quant.Call
    truth: Tensor

    @contextmanager
    def opened(self, backend: str) -> Iterator[Any]:
        """An executable, closed afterwards."""
        options = quant.Options(self.folder.parent / "cache", threads=1)
        executable = quant.open_backend(backend, self.folder, self.manifest, self.empty, options)
        try:
            yield executable
        finally:
            executable.close()


def recipe_of(text: str) -> Recipe:
    return parse(f'name = "tests"\n{text}', "the tests' recipe")


def make(name: str, text: str, root: Path) -> Made:
    module, call = tiny_denoiser(name, rows=4)
    with torch.no_grad():
        truth = call_module(module, call)

    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        answer(call)

    def empty() -> nn.Module:
        bare, _ = tiny_denoiser(name)
        for part in bare.modules():
            for own, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, own, nn.Parameter(parameter.to("meta"), requires_grad=False))
        return bare

    recipe = recipe_of(text)
    rotation = quant.rotate_(module, run, recipe)
    made = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    told: dict[str, Any] = {"model": "tiny", "model_sha256": "a" * 64, "calibration": {}, "version": "0"}
    quant.save(root / "made", module, made, recipe, rotation=rotation, **told)
    return Made(root / "made", quant.read_manifest(root / "made"), module, empty, call, truth)


@pytest.mark.parametrize(
    ("name", "text"),
    [("pixart-sigma", HADAMARD), ("pixart-sigma", GREEDY), ("unet", GREEDY), ("sd15", HADAMARD + TFMQ)],
)
def test_both_backends_run_it_alike(name: str, text: str, tmp_path: Path) -> None:
    made = make(name, text, tmp_path)
    outputs = {}
    for backend in quant.BACKENDS:
        with made.opened(backend) as executable:
            outputs[backend] = executable.run(made.call)
            assert 1e-4 < quant.relative_error(outputs[backend], made.truth) < 0.08
    assert quant.relative_error(outputs["openvino"], outputs["reference"]) < 0.04


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    made = make("sd15", HADAMARD, tmp_path)
    loaded = quant.load_into(made.empty(), made.folder, made.manifest)
    before = made.quantized.state_dict()
    assert loaded.state_dict().keys() == before.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    shared = [name for name, form in made.manifest.transforms.items() if form.like]
    assert shared
    layers = transformed_layers(loaded)
    for name in shared:
        assert layers[name].transform is layers[made.manifest.transforms[name].like].transform
    with torch.no_grad():
        assert torch.equal(call_module(loaded, made.call), call_module(made.quantized, made.call))


def test_the_manifest_tells_what_was_done_and_what_it_takes(tmp_path: Path) -> None:
    made = make("pixart-sigma", HADAMARD, tmp_path)
    rotation, manifest = made.manifest.rotation, made.manifest
    assert rotation is not None
    online = {layer.name for layer in rotation.layers if "online" in (layer.rotation, layer.factors)}
    assert online == manifest.transforms.keys()
    assert {f"{name}.inner" for name in online} <= manifest.forms.keys()
    leaders = {name for name, form in manifest.transforms.items() if not form.like}
    reports = {layer.name: layer for layer in manifest.layers}
    for name in leaders:
        told = reports[f"{name}.transform"]
        assert (told.kind, told.bytes_before) == ("transform", 0)
        assert told.bytes_after > 0
        assert told.kept_float_because
    plain = make("pixart-sigma", "", tmp_path / "plain").manifest
    assert plain.float_weights_bytes == manifest.float_weights_bytes
    assert manifest.weights_bytes < 1.1 * plain.weights_bytes, "signs and factors take few bytes"
    assert plain.rotation is not None
    assert (plain.transforms, plain.rotation.layers) == ({}, ())


def test_openvino_computes_a_shared_transform_once(tmp_path: Path) -> None:
    made = make("pixart-sigma", HADAMARD, tmp_path)
    leaders = [form for form in made.manifest.transforms.values() if not form.like]
    assert len(leaders) < len(made.manifest.transforms)
    with made.opened("openvino") as executable:
        assert isinstance(executable, engine.OpenVinoExecutable)
        compiled = executable._compiled(made.call)
        assert compiled.context is not None  # keys and values of the text are computed apart
        graphs = [one.get_runtime_model() for one in (compiled.model, compiled.context.model)]
    shapes = [
        [int(length) for length in node.input(1).get_shape()]
        for graph in graphs
        for node in graph.get_ops()
        if str(node.get_rt_info()["layerType"].astype(str)) in ("FullyConnected", "MatMul")
    ]
    assert shapes.count([16, 16]) == sum(form.signs == 16 for form in leaders) > 5


def test_rules_are_about_the_layers_own_names(tmp_path: Path) -> None:
    rules = '[[rules]]\nmatch = ["*.to_q"]\nweights = { bits = 4 }\n[[rules]]\nmatch = ["*.to_k"]\nkeep = "float"\n'
    made = make("pixart-sigma", HADAMARD + rules, tmp_path)
    bits = {name: form.weight_bits for name, form in made.manifest.forms.items()}
    assert {bits[name] for name in bits if name.endswith("to_q.inner")} == {4}
    assert {bits[name] for name in bits if name.endswith("to_v.inner")} == {8}
    assert not any("to_k" in name for name in (*bits, *made.manifest.transforms))


def test_reconstruction_learns_on_rotated_inputs(tmp_path: Path) -> None:
    adaround = '[rounding]\nmethod = "adaround"\niterations = 4\nsamples = 4\nbatch = 2\n'
    made = make("pixart-sigma", HADAMARD + adaround + "[weights]\nbits = 4\n", tmp_path)
    assert any(note.startswith("units that were reconstructed: ") for note in made.manifest.notes)
    assert not any("were not reconstructed" in note for note in made.manifest.notes)
    with made.opened("reference") as executable:
        assert quant.relative_error(executable.run(made.call), made.truth) < 0.4


def test_layers_that_stay_float_compute_no_transform(tmp_path: Path) -> None:
    made = make("pixart-sigma", HADAMARD + "[sensitive]\nmacs = 0.3\nbytes = 0.3\nleast = 0.0\n", tmp_path)
    spared = {layer.name for layer in made.manifest.layers if "sensitive" in (layer.kept_float_because or "")}
    assert spared
    assert not any(name.endswith("inner") for name in spared)
    assert not spared & made.manifest.transforms.keys()
    rotation = made.manifest.rotation
    assert rotation is not None
    told = {layer.name: layer for layer in rotation.layers}
    assert all("online" not in (told[name].rotation, told[name].factors) for name in spared)
    online = {name: layer.like for name, layer in told.items() if layer.is_online}
    assert online == {name: form.like for name, form in made.manifest.transforms.items()}
    assert all((told[name].macs > 0) == (not like) for name, like in online.items())
    for backend in quant.BACKENDS:
        with made.opened(backend) as executable:
            assert quant.relative_error(executable.run(made.call), made.truth) < 0.08


def test_times_that_no_table_knows_are_computed(tmp_path: Path) -> None:
    made = make("sd3", HADAMARD + '[temporal]\nmaintenance = "cache"\n', tmp_path)
    assert made.manifest.fallback
    other = made.call.rows["timestep"] * 0.5 + 3.0
    call = quant.Call({**made.call.rows, "timestep": other}, made.call.clock, roles=made.call.roles)
    module, _ = tiny_denoiser("sd3", rows=4)
    with torch.no_grad():
        truth = call_module(module, call)
    with made.opened("reference") as executable:
        assert quant.relative_error(executable.run(call), truth) < 0.08


def test_recipes_that_rotate_differently_share_no_stages() -> None:
    keys = {
        quant.reconstruction_key(recipe_of(text))
        for text in ("", HADAMARD, GREEDY, HADAMARD + "[activations]\nbits = 4\n")
    }
    assert len(keys) == 4
    renamed = recipe_of(HADAMARD).model_copy(update={"name": "other", "description": "told otherwise"})
    assert quant.reconstruction_key(renamed) == quant.reconstruction_key(recipe_of(HADAMARD))
