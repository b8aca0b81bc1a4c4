"""What the catalog finds in folders, and how it speaks of what is broken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.catalog import Catalog
from jobs.errors import UnknownModel, UnknownProfile
from jobs.settings import Settings

MANIFEST: dict[str, Any] = {
    "format": 2,
    "model": "tiny",
    "profile": "w8a8",
    "backend": "openvino",
    "recipe": {"name": "w8a8", "format": 1},
    "weight_bits": 8,
    "activation_bits": 8,
    "weights_bytes": 100,
    "float_weights_bytes": 400,
    "model_sha256": "0" * 64,
    "files": {"denoiser.safetensors": "0" * 64},
    "layers": [],
    "calibration": {"prompts": 3},
    "fidelity": {"prompts": 256, "psnr_db": 33.0, "ssim": 0.98},
    "halftone_version": "0.1.0",
}


def make_model(folder: Path, sheet: dict[str, Any] | None = None, sample_size: Any = 8) -> Path:
    """A folder in diffusers' layout with a denoiser of 12 + 4 numbers."""
    header = {"a": {"dtype": "F16", "shape": [3, 4], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
    header["b"] = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}
    text = json.dumps(header).encode()
    for part, config in (("unet", {"sample_size": sample_size}), ("vae", {"block_out_channels": [1, 2, 3, 4]})):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    weights = len(text).to_bytes(8, "little") + text + bytes(32)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    if sheet is not None:
        (folder / "halftone.json").write_text(json.dumps(sheet))
    return folder


def make_artifact(data: Path, model: str = "tiny", profile: str = "w8a8", **changes: Any) -> Path:
    folder = data / "artifacts" / model / profile
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | changes))
    return folder


def scan(data: Path, *models: Path, **changes: Any) -> Catalog:
    return Catalog.scan(Settings.model_validate({"data": data, "models": models, **changes}))


def own_faults(catalog: Catalog, data: Path) -> list[str]:
    return [fault for fault in catalog.faults if str(data) in fault]


def test_a_model_without_a_sheet_gets_the_generic_rules(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny", sample_size=[4, 8])
    catalog = scan(tmp_path)
    card = catalog.card("tiny")
    assert (card.defaults.width, card.defaults.height) == (64, 32)
    assert (card.defaults.num_inference_steps, card.defaults.guidance_scale) == (25, 7.5)
    assert (card.limits.multiple_of, card.limits.min_side, card.limits.max_pixels) == (16, 32, 2_097_152)
    assert card.pipeline == "StableDiffusionPipeline"
    [profile] = card.profiles
    assert (profile.name, profile.backend, profile.weights_bytes) == ("float", "torch", 16 * 4)
    assert own_faults(catalog, tmp_path) == []


def test_a_sheet_says_it_better(tmp_path: Path) -> None:
    sheet = {
        "id": "shapes",
        "kind": "image",
        "description": "d",
        "defaults": {"width": 64, "height": 64, "num_inference_steps": 9, "guidance_scale": 4},
        "limits": {"min_side": 32, "max_side": 128, "multiple_of": 16, "max_pixels": 16384, "max_steps": 50},
        "trained_sizes": [[64, 64]],
        "vocabulary": ["red"],
    }
    card = scan(tmp_path, make_model(tmp_path / "elsewhere", sheet)).card("shapes")
    assert card.model_dump(mode="json", include=set(sheet), exclude_none=True) == sheet


def test_an_artifact_becomes_a_profile(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny")
    folder = make_artifact(tmp_path)
    profile = scan(tmp_path).profile("tiny", "w8a8")
    assert (profile.backend, profile.weight_bits, profile.weights_bytes) == ("openvino", 8, 100)
    assert profile.fidelity is not None
    assert profile.fidelity.psnr_db == 33
    assert profile.artifact == folder


def test_the_unknown_is_refused_with_what_is_known(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny")
    make_artifact(tmp_path)
    catalog = scan(tmp_path)
    with pytest.raises(UnknownModel, match=r"'big'.*tiny"):
        catalog.card("big")
    with pytest.raises(UnknownProfile, match=r"'w4'.*float, w8a8"):
        catalog.profile("tiny", "w4")


def test_the_null_model_only_when_asked_for(tmp_path: Path) -> None:
    assert "null" not in scan(tmp_path).models
    assert scan(tmp_path, allow_null_model=True).profile("null", "float").backend == "null"


BROKEN: dict[str, tuple[str, dict[str, str | None]]] = {
    "no index": ("model_index.json", {"model_index.json": None}),
    "bad index": ("", {"model_index.json": "{"}),
    "index is a list": ("not a JSON object", {"model_index.json": "[]"}),
    "unknown field": ("surprise", {"halftone.json": '{"surprise": 1}'}),
    "bad id": ("id", {"halftone.json": '{"id": "../up"}'}),
    "no weights": (
        "safetensors",
        {"unet/diffusion_pytorch_model.safetensors": None, "unet/diffusion_pytorch_model.fp16.safetensors": None},
    ),
    "no safetensors": ("cut short", {"unet/diffusion_pytorch_model.safetensors": "\xff" * 20}),
    "odd size": ("sample_size", {"unet/config.json": '{"sample_size": "big"}'}),
    "no denoiser": ("unet, transformer", {"unet": None}),
}


@pytest.mark.parametrize(("word", "changes"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_is_reported_and_the_others_live(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, word: str, changes: dict[str, str | None]
) -> None:
    make_model(tmp_path / "models" / "good")
    bad = make_model(tmp_path / "models" / "bad")
    for name, text in changes.items():
        if text is not None:
            (bad / name).write_text(text, encoding="latin-1")
        elif (bad / name).is_dir():
            (bad / name).rename(bad / "gone")
        else:
            (bad / name).unlink()
    with caplog.at_level(logging.WARNING):
        catalog = scan(tmp_path)
    [fault] = own_faults(catalog, tmp_path)
    assert str(bad) in fault
    assert word in fault
    assert fault in caplog.messages
    assert "good" in catalog.models
    assert "bad" not in catalog.models


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": 1}, "format"),
        ({"extra": 1}, "extra"),
        ({"profile": "other"}, "by its manifest"),
        ({"weight_bits": "eight"}, "weight_bits"),
        ({"backend": "magic"}, "backend"),
        ({"guidance": {"steps": []}}, "saving"),
    ],
)
def test_a_broken_artifact_is_reported(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    make_model(tmp_path / "models" / "tiny")
    make_artifact(tmp_path, **changes)
    (tmp_path / "artifacts" / "tiny" / "empty").mkdir()
    catalog = scan(tmp_path)
    broken, empty = sorted(own_faults(catalog, tmp_path), key=lambda fault: "empty" in fault)
    assert word in broken
    assert "manifest.json" in empty
    assert [profile.name for profile in catalog.card("tiny").profiles] == ["float"]


@pytest.mark.parametrize(("name", "word"), [("float", "already"), ("auto", "may be named")])
def test_a_profile_cannot_take_a_name_that_means_something(tmp_path: Path, name: str, word: str) -> None:
    make_model(tmp_path / "models" / "tiny")
    folder = make_artifact(tmp_path, profile=name)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"profile": name}), encoding="utf-8")
    catalog = scan(tmp_path)
    [fault] = own_faults(catalog, tmp_path)
    assert word in fault
    assert [profile.name for profile in catalog.card("tiny").profiles] == ["float"]


def test_second_ones_are_reported(tmp_path: Path) -> None:
    make_model(tmp_path / "models" / "tiny")
    second = make_model(tmp_path / "other" / "tiny")
    make_artifact(tmp_path, profile="float")
    make_artifact(tmp_path, model="nobody")
    catalog = scan(tmp_path, second, tmp_path / "nowhere")
    assert catalog.card("tiny").folder == tmp_path / "models" / "tiny"
    faults = " ".join(own_faults(catalog, tmp_path))
    assert str(second) in faults
    assert "nowhere" in faults
    assert len(own_faults(catalog, tmp_path)) == 4


def test_our_manifest_is_the_one_that_quant_writes() -> None:
    from jobs.manifest import Manifest
    from quant.manifest import Manifest as Written

    assert Manifest.model_fields.keys() == Written.model_fields.keys()
    written = Written.model_validate(MANIFEST)
    read = Manifest.model_validate_json(written.model_dump_json())
    assert read.model_dump(mode="json", exclude={"fidelity"}) == written.model_dump(mode="json", exclude={"fidelity"})
