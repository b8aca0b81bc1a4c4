"""Without a server: `generate --local`, lists, a model quantized and held against float. On a tiny real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halftone.cli import app
from pipelines.media import read_facts
from pipelines.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny("stable-diffusion", tmp_path_factory.mktemp("models") / "tiny")
    defaults = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    limits = {"min_side": 16, "max_side": 64, "multiple_of": 16, "max_pixels": 4096}
    (folder / "halftone.json").write_text(json.dumps({"defaults": defaults, "limits": limits}))
    return folder


@pytest.fixture(autouse=True)
def _own_models(alone: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_MODELS", str(tiny))
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))
    monkeypatch.setenv("HALFTONE_DEFAULT_MODEL", "tiny")
    monkeypatch.setenv("HALFTONE_THREADS", "1")


def answer(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_models_and_profiles_of_this_machine() -> None:
    assert "tiny" in {model["id"] for model in answer("models", "--local")}
    assert ("tiny", "float") in {(card["model"], card["name"]) for card in answer("profiles", "--local")}


def test_a_picture_without_a_server(alone: Path) -> None:
    asked = ("generate", "a red circle", "--local", "--steps", "2", "--seed", "3", "--size", "32x32")
    made = answer(*asked, "-o", "a.png")
    data = (alone / "a.png").read_bytes()
    facts = read_facts(data)
    assert facts is not None
    assert (facts["seed"], facts["profile"], facts["prompt"]) == (3, "float", "a red circle")
    assert made["costs"]["denoiser_calls"] >= 2
    answer(*asked, "-o", "b.png")
    assert (alone / "b.png").read_bytes() == data, "the same seed makes the same bytes"


def test_faults_are_those_of_a_server() -> None:
    for arguments, text in [
        (("--profile", "w0a0"), "has no profile 'w0a0'"),
        (("--model", "nobody"), "no model 'nobody'"),
        (("--size", "33x33"), "multiple of"),
        (("--seed", "-1"), "seed"),
    ]:
        result = CliRunner().invoke(app, ["generate", "x", "--local", *arguments])
        assert result.exit_code == 1
        assert text in result.stderr


def test_quantize_then_generate_then_evaluate(alone: Path, tiny: Path) -> None:
    (alone / "prompts.txt").write_text("a red circle\n\na blue square\n")
    made = answer("quantize", str(tiny), "--prompts", "prompts.txt")
    assert Path(made["folder"]) == alone / "data/artifacts/tiny/w8a8"
    assert (made["profile"]["name"], made["profile"]["weight_bits"]) == ("w8a8", 8)
    assert ("tiny", "w8a8") in {(card["model"], card["name"]) for card in answer("profiles", "--local")}
    used = answer("generate", "a red circle", "--local", "-p", "w8a8", "--steps", "2", "-o", "q.png")["used"]
    assert (used["profile"], used["backend"]) == ("w8a8", "openvino")
    rows = answer("evaluate", "tiny", "--prompts", "prompts.txt", "--limit", "1")
    assert [row["profile"] for row in rows] == ["float", "w8a8"]
    assert (rows[0]["psnr_db"], rows[0]["identical"]) == (None, rows[0]["prompts"])
    assert rows[1]["weights_bytes"] < rows[0]["weights_bytes"]


def test_an_evaluation_as_a_table() -> None:
    Path("p.txt").write_text("a red circle\n", encoding="utf-8")
    table = CliRunner().invoke(app, ["evaluate", "tiny", "--profiles", "float", "--prompts", "p.txt"]).stdout
    assert "identical" in table and "PSNR" not in table  # of float itself there is none


def test_what_cannot_be_quantized_is_told(tiny: Path) -> None:
    runner = CliRunner()
    assert "no prompts of its own" in runner.invoke(app, ["quantize", str(tiny)]).stderr
    (Path("p.txt")).write_text("x\n", encoding="utf-8")
    assert "w0a0" in runner.invoke(app, ["quantize", str(tiny), "--recipe", "w0a0", "--prompts", "p.txt"]).stderr
    assert "no model 'nobody'" in runner.invoke(app, ["quantize", "nobody", "--prompts", "p.txt"]).stderr
    assert (
        "has no profile 'w0a0'"
        in runner.invoke(app, ["evaluate", str(tiny), "--profiles", "w0a0", "--prompts", "p.txt"]).stderr
    )
