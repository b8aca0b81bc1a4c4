"""Artifacts: what is saved comes back to the bit, the same input gives the same bytes, anything off is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import jobs.manifest
import quant
from quant.artifact import TENSORS, _unpacked
from quant.backends.call import call_module
from quant.grid import integer_range, pack4
from quant.layers import QuantizedLayer
from quant.packing import pack

Artifact = tuple[Path, quant.Manifest]
Save = Callable[[Path, nn.Module], quant.Manifest]
Make = Callable[..., quant.Call]
Run = Callable[[Callable[[quant.Call], torch.Tensor]], None]


@pytest.fixture
def save(recipe: quant.Recipe, run: Callable[[Callable[[quant.Call], torch.Tensor]], None]) -> Save:
    def write(folder: Path, net: nn.Module) -> quant.Manifest:
        made = quant.quantize_(net, recipe, quant.calibrate(net, run))
        return quant.save(
            folder, net, made, recipe, model="net", model_sha256="a" * 64, calibration={"prompts": 4}, version="0"
        )

    return write


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(artifact[0], tmp_path / "copy"))


def test_what_was_saved_comes_back_to_the_bit(
    tmp_path: Path, net: nn.Module, save: Save, empty: Callable[[], nn.Module], call: Callable[..., quant.Call]
) -> None:
    manifest = save(tmp_path / "made", net)
    again = quant.load_into(empty(), tmp_path / "made", quant.read_manifest(tmp_path / "made"))
    assert torch.equal(call_module(again, call(3)), call_module(net, call(3)))
    stored = load_file(tmp_path / "made" / TENSORS)
    assert manifest.weights_bytes == sum(tensor.nbytes for tensor in stored.values())
    assert stored["down.integers"].dtype is torch.int8
    assert stored["norm.weight"].dtype is torch.float16  # ones, so nothing is lost
    assert stored["last.weight"].dtype is torch.float32
    assert manifest.memory_bytes == sum(tensor.nbytes for tensor in again.state_dict().values())
    assert "shift" not in stored
    assert manifest.weights_bytes < 0.35 * manifest.float_weights_bytes


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_weights_take_the_bits_that_they_have(
    bits: int,
    tmp_path: Path,
    net: nn.Module,
    recipe: quant.Recipe,
    empty: Callable[[], nn.Module],
    run: Run,
    call: Make,
) -> None:
    recipe = recipe.model_copy(update={"weights": recipe.weights.model_copy(update={"bits": bits})})
    made = quant.quantize_(net, recipe, quant.calibrate(net, run))
    place, layer = tmp_path / "made", net.get_submodule("down")
    assert isinstance(layer, QuantizedLayer)
    quant.save(place, net, made, recipe, model="net", model_sha256="a" * 64, calibration={}, version="0")
    tensors = load_file(place / TENSORS)
    assert tensors["down.integers"].nbytes == -(-layer.integers.numel() * bits // 8)
    again = quant.load_into(empty(), place, quant.read_manifest(place))
    assert torch.equal(call_module(again, call(3)), call_module(net, call(3)))
    if bits != 4:  # as versions before packed integers of any width stored them
        tensors["down.integers"] = pack4(layer.integers) if bits < 4 else layer.integers
        save_file(tensors, place / TENSORS)
        older = quant.load_into(empty(), place, quant.read_manifest(place))
        assert torch.equal(call_module(older, call(3)), call_module(net, call(3)))


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("count", range(1, 6))
def test_a_handful_of_integers_is_read_as_it_is_stored_now(count: int, bits: int) -> None:
    integers = torch.tensor([*range(*integer_range(bits)), -1, -1, -1], dtype=torch.int8)[:count]
    again = _unpacked("down.integers", pack(integers, bits), integers, bits, Path(TENSORS))
    assert torch.equal(again, integers)


def test_the_same_input_gives_the_same_bytes(artifact: Artifact, tmp_path: Path, net: nn.Module, save: Save) -> None:
    save(tmp_path / "again", net)
    names = sorted(path.name for path in artifact[0].iterdir())
    assert names == ["denoiser.safetensors", "manifest.json"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (artifact[0] / name).read_bytes()


def test_the_catalog_reads_the_manifest(artifact: Artifact) -> None:
    manifest = quant.set_fidelity(artifact[0], {"prompts": 2, "psnr_db": 40.0, "ssim": 0.99})
    card = jobs.manifest.Manifest.read(artifact[0] / quant.MANIFEST).card(artifact[0])
    assert (card.name, card.model, card.backend, card.weight_bits) == ("small", "net", "openvino", 8)
    assert card.weights_bytes == manifest.weights_bytes
    assert card.fidelity is not None
    assert card.fidelity.psnr_db == 40.0


def test_replacing_an_artifact_leaves_nothing_else(tmp_path: Path, net: nn.Module, save: Save) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("")
    save(tmp_path / "made", net)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert not (tmp_path / "made" / "old").exists()


def test_nothing_is_saved_of_a_module_with_nan(artifact: Artifact, tmp_path: Path, net: nn.Module, save: Save) -> None:
    net.get_submodule("norm").weight.data[0] = torch.nan  # type: ignore[operator]
    net.get_submodule("first").register_forward_hook(lambda layer, given, answer: answer)
    recipe, made = quant.Recipe(name="x"), quant.Quantization(quant.Report(layers=()))
    with pytest.raises(quant.ArtifactError, match=r"nothing was saved: NaN or infinity in norm\.weight"):
        quant.save(tmp_path / "x", net, made, recipe, model="m", model_sha256="a", calibration={}, version="0")
    assert list(tmp_path.iterdir()) == []


def test_changed_files_and_other_models_are_refused(copy: Path) -> None:
    manifest = quant.read_manifest(copy)
    quant.verify(copy, manifest, "a" * 64)
    with pytest.raises(quant.ArtifactError, match="other weights or another config"):
        quant.verify(copy, manifest, "b" * 64)
    data = bytearray((copy / TENSORS).read_bytes())
    data[-1] ^= 1
    (copy / TENSORS).write_bytes(data)
    with pytest.raises(quant.ArtifactError, match="SHA-256 differs"):
        quant.verify(copy, manifest)
    (copy / TENSORS).unlink()
    with pytest.raises(quant.ArtifactError, match="cannot read"):
        quant.verify(copy, manifest)


def test_files_that_are_known_are_read_once_and_changes_noticed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.hashes.SETTLED_SECONDS", -1.0)
    read, digest = list[str](), hashlib.file_digest

    def counting(file: Any, kind: str) -> object:
        read.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr("quant.hashes.hashlib.file_digest", counting)
    manifest, hashes = quant.read_manifest(copy), quant.Hashes(tmp_path / "hashes.json")
    for _ in range(3):
        quant.verify(copy, manifest, "a" * 64, hashes)
    assert sorted(read) == sorted(str(copy / name) for name in manifest.files)
    data = bytearray((copy / TENSORS).read_bytes())
    data[-1] ^= 1
    (copy / TENSORS).write_bytes(data)
    with pytest.raises(quant.ArtifactError, match="SHA-256 differs"):
        quant.verify(copy, manifest, "a" * 64, hashes)


def test_tensors_must_fit_exactly(copy: Path, empty: Callable[[], nn.Module]) -> None:
    stored = load_file(copy / TENSORS)
    stored["strange"] = stored.pop("down.scales")
    stored["mix.integers"] = stored["mix.integers"].float()
    save_file(stored, copy / TENSORS)
    with pytest.raises(quant.ArtifactError) as caught:
        quant.load_into(empty(), copy, quant.read_manifest(copy))
    for fault in ("down.scales is missing", "strange is not of this model", "mix.integers is torch.float32 [64, 64]"):
        assert fault in str(caught.value)


def test_a_grid_for_each_step_without_bits_is_refused(copy: Path, empty: Callable[[], nn.Module]) -> None:
    manifest = quant.read_manifest(copy)
    broken = manifest.forms["time"].model_copy(update={"kind": "stepwise", "input_bits": None, "slots": 2})
    manifest = manifest.model_copy(update={"forms": {**manifest.forms, "time": broken}})
    with pytest.raises(quant.ArtifactError, match="a grid for each step of time, but does not say of how many bits"):
        quant.load_into(empty(), copy, manifest)


def test_truncated_tensors_and_other_structures_are_refused(copy: Path, empty: Callable[[], nn.Module]) -> None:
    manifest = quant.read_manifest(copy)
    with pytest.raises(quant.ArtifactError, match="quantizes down, which the model"):
        quant.load_into(nn.Sequential(nn.Linear(2, 2)), copy, manifest)
    (copy / TENSORS).write_bytes((copy / TENSORS).read_bytes()[:100])
    with pytest.raises(quant.ArtifactError, match="cannot be read"):
        quant.load_into(empty(), copy, manifest)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 9}, "has format 9; this version reads format 2"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"weights_bytes": "many"}, "weights_bytes: Input should be a valid integer"),
    ],
)
def test_manifests_are_read_strictly(copy: Path, change: dict[str, object], fault: str) -> None:
    path = copy / quant.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(quant.ArtifactError, match=fault):
        quant.read_manifest(copy)


def test_folders_without_a_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(quant.ArtifactError, match="is no artifact"):
        quant.read_manifest(tmp_path)
    (tmp_path / quant.MANIFEST).write_text("{")
    with pytest.raises(quant.ArtifactError, match="is no JSON"):
        quant.read_manifest(tmp_path)
