"""`halftone tune` on a tiny model: refusals before any work, a promise out of reach, and a profile that then serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from halftone.cli import app
from pipelines.tiny import save_tiny
from quant.recipe_parts import Rounding

LINES = ["a b", "c d", "e", "f g", "h", "i j", "k l", "m"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = save_tiny("pixart-sigma", tmp_path_factory.mktemp("models") / "tiny")
    sheet = {"defaults": {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}}
    (found / "halftone.json").write_text(json.dumps(sheet), encoding="utf-8")
    return found


@pytest.fixture(autouse=True)
def _own_data(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))
    monkeypatch.setenv("HALFTONE_THREADS", "1")
    Path("prompts.txt").write_text("\n".join(LINES), encoding="utf-8")


def halftone(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tune(folder: object, promise: object, *more: object) -> Result:
    return halftone("tune", folder, "--min-psnr", promise, "--objective", "memory", "--prompts", "prompts.txt", *more)


@pytest.mark.parametrize(
    ("promise", "more", "text"),
    [
        (5, (), "a promise is a PSNR of 10 to 100 dB, not 5"),
        (200, (), "not 200"),
        ("nan", (), "not nan"),
        (30, ("--name", "Bad Name"), "'Bad Name' is no profile's name"),
        (30, ("--name", "float"), "has a profile 'float' already"),
        (30, ("--name", "auto"), "no profile may be named 'auto'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    promise: object, more: tuple[str, ...], text: str, folder: Path
) -> None:
    result = tune(folder, promise, *more)
    assert (result.exit_code, result.stdout.strip()) == (1, ""), result.output
    assert text in result.stderr
    assert not Path("data/artifacts").exists()


def test_models_and_prompts_that_cannot_be_used(folder: Path) -> None:
    assert "no model 'nobody'" in tune("nobody", 30).stderr
    Path("prompts.txt").write_text("a\nb\na\nc\n", encoding="utf-8")
    assert "at least 6 different prompts, half of them held out, not 3" in tune(folder, 30).stderr
    assert halftone("tune", folder, "--min-psnr", 30, "--objective", "beauty").exit_code == 2


def test_learning_needs_prompts_of_its_own(folder: Path) -> None:
    refused = tune(folder, 28, "--samples", 2, "--learn", 3)
    assert refused.exit_code == 1
    assert "of 8 prompts, half are measured and learned on: 2 and 2, not 3; give more prompts" in refused.stderr


@pytest.mark.timeout(1800)
def test_rounding_is_learned_after_recipes_to_nearest_and_the_smallest_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Rounding(method="adaround", iterations=40, learning_rate=0.03, samples=32)
    monkeypatch.setattr("pipelines.tune.learned_rounding", lambda: quick)
    made = tune(folder, 32, "--name", "mine", "--samples", 2, "--learn", 2, "--json")
    assert made.exit_code == 0, made.output
    told: dict[str, Any] = json.loads(made.stdout)
    rounds = told["story"]["rounds"]
    first = [one["learned"] for one in rounds].index(True)
    assert first > 0 and all(one["learned"] for one in rounds[first:]), "first to nearest, then learned"
    assert len(rounds) - first <= 3
    assert rounds[first]["expected_bytes"] < min(one["expected_bytes"] for one in rounds[:first]), "it is worth 3 dB"
    kept = min((one for one in rounds if one["psnr_db"] >= 32), key=lambda one: one["expected_bytes"])
    manifest = json.loads((Path(told["folder"]) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["weights_bytes"] == kept["bytes"] and told["profile"]["fidelity"]["psnr_db"] >= 32
    learned = kept["learned"]
    assert manifest["recipe"]["rounding"]["method"] == ("adaround" if learned else "nearest")
    assert manifest["calibration"]["prompts"] == (4 if learned else 2)

    kept_before = {path.name for path in Path("data/artifacts/tiny/.tuning").glob("drawn-*.json")}
    again = tune(folder, 32, "--name", "mine", "--samples", 2, "--learn", 1)
    assert again.exit_code == 0, again.output
    fresh = {path.name for path in Path("data/artifacts/tiny/.tuning").glob("drawn-*.json")} - kept_before
    assert fresh, "what was learned on other prompts is drawn again"


@pytest.mark.timeout(1800)
def test_a_promise_out_of_reach_then_one_that_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:  # a tiny model's weights are so alike that half of its bytes are exact
        for room in ("pipelines.tune", "pipelines.tune_order"):
            patched.setattr(f"{room}.MOST_OF_FLOAT", 0.2)
        refused = tune(folder, 99, "--name", "mine")
    assert refused.exit_code == 1 and "reaches 99 dB: " in refused.stderr, refused.output
    assert not Path("data/artifacts/tiny/mine").exists()
    assert not list(Path("data/artifacts/tiny/.tuning").glob("recipe-*")), "recipes that were no answer are removed"
    kept = {path.name: path.stat().st_mtime_ns for path in Path("data/artifacts/tiny/.tuning").glob("*.json")}
    assert {name.partition("-")[0] for name in kept} == {"offers", "effects", "times", "measured", "drawn"}

    made = tune(folder, 28, "--name", "mine", "--json")
    assert made.exit_code == 0, made.output
    told: dict[str, Any] = json.loads(made.stdout)
    place = Path(told["folder"])
    assert told["profile"]["name"] == "mine" and told["profile"]["fidelity"]["psnr_db"] >= 28
    assert told["profile"]["fidelity"]["prompts"] == 2, "a quarter is held out"
    assert told["profile"]["fidelity"]["seconds"] > 0
    scattered = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["fidelity"]["spread"]
    assert len(scattered["psnr_db"]) == 2 and scattered["temporal_error"], "auto and the guard know held-out pictures"
    assert (place / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    again = {path.name: path.stat().st_mtime_ns for path in Path("data/artifacts/tiny/.tuning").glob("*.json")}
    assert all(again[name] == when for name, when in kept.items()), "what was measured is not measured again"
    first, *_ = told["story"]["rounds"]
    assert first["expected_bytes"] == pytest.approx(first["bytes"], rel=0.05), "bytes are known before"
    assert told["profile"]["weights_bytes"] < 0.75 * told["profile"]["float_weights_bytes"]

    Path("half.txt").write_text("\n".join(LINES[:4]), encoding="utf-8")
    remade = halftone("quantize", folder, "--recipe", place / "recipe.toml", "--prompts", "half.txt", "--out", "again")
    assert remade.exit_code == 0, remade.output
    assert Path("again/denoiser.safetensors").read_bytes() == (place / "denoiser.safetensors").read_bytes()

    monkeypatch.setenv("HALFTONE_MODELS", str(folder))
    drawn = halftone("generate", "a b", "--local", "--model", "tiny", "--profile", "mine", "-o", "a.png")
    assert drawn.exit_code == 0 and Path("a.png").exists(), drawn.output
