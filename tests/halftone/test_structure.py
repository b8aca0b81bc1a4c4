"""`halftone inspect` and `halftone plan`: tables for people, JSON for scripts, clear words for what is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halftone.cli import app
from pipelines.sizes import PUBLIC
from pipelines.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stable-diffusion-xl", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _own_models(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_MODELS", "")
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))


def answer(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def table(*arguments: str) -> list[list[str]]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


def test_inspect_a_folder(tiny: Path) -> None:
    told = answer("inspect", str(tiny))
    names = {row["name"]: row for row in told["modules"]}
    assert names["add_embedding.linear_1"]["category"] == "E2"
    assert names["time_embedding.linear_1"] | {"name": "", "parameters": 0, "bytes": 0} == {
        "name": "",
        "kind": "Linear",
        "category": "E0",
        "frontier": False,
        "count": 1,
        "parameters": 0,
        "bytes": 0,
        "table": {},
    }
    assert told["temporal_parameters"] == sum(row["parameters"] for row in told["modules"])
    assert told["table"]["float32"] == 4 * (32 + 64 + 2 * 64 + 2 * 64 + 2 * 32)
    assert told["unknown"] == ""


def test_inspect_shows_modules_alike_as_one_or_each(tiny: Path) -> None:
    together, each = table("inspect", str(tiny)), table("inspect", str(tiny), "--each")
    assert together[0][:4] == each[0][:4] == ["module", "count", "kind", "class"]
    assert ["mid_block.resnets.*.time_emb_proj", "2", "Linear", "E2", "yes"] in [row[:5] for row in together]
    assert len(each) == 1 + len(answer("inspect", str(tiny))["modules"]) > len(together)


def test_inspect_a_built_in_model_by_its_id() -> None:
    told = answer("inspect", "shapes-unet")
    assert told["kind"] == "UNet2DConditionModel"
    assert {row["category"] for row in told["modules"]} == {"E0"}


def test_plan_a_folder(tiny: Path) -> None:
    made = answer("plan", str(tiny), "--steps", "20", "--storage", "int8")
    assert (made["steps"], made["storage"]) == (20, "int8")
    assert made["table_bytes"] == 20 * answer("inspect", str(tiny))["table"]["int8"]
    weights = (tiny / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert made["total"]["float32"] == pytest.approx(weights, rel=0.01)


def test_plan_a_public_model_by_its_name() -> None:
    made = answer("plan", "minimax-h3")
    assert made["parameters"] == pytest.approx(33.1e9, rel=0.01)
    rows = {row[0]: row for row in table("plan", "minimax-h3")}
    assert [*rows][:7] == ["part", "temporal", "linear", "conv", "embedding", "other", "total"]
    assert rows["temporal"][1] == f"{made['parts'][0]['parameters']:,}"


def test_plan_lists_the_public_models() -> None:
    assert [row["name"] for row in answer("plan", "--list")] == list(PUBLIC)
    assert [row[0] for row in table("plan", "--list")] == ["name", *PUBLIC]


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_faults_say_what_is_wrong(command: str, tiny: Path, alone: Path) -> None:
    def fault(*arguments: str) -> str:
        result = CliRunner().invoke(app, [command, *arguments])
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        return result.stderr

    assert "no model 'nobody'" in fault("nobody")
    (alone / "empty").mkdir()
    assert "empty cannot be used" in fault(str(alone / "empty"))
    pickled = shutil.copytree(tiny, alone / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "unet has no .safetensors file; other formats are never loaded" in fault(str(pickled))


def test_an_unknown_name_is_told_the_public_ones() -> None:
    result = CliRunner().invoke(app, ["plan", "qwen-imagine", "--json"])
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert error["code"] == "unknown_model"
    assert "qwen-image" in error["message"]
    assert "shapes-unet" in error["message"]


def test_plan_needs_a_name_and_at_least_a_step() -> None:
    result = CliRunner().invoke(app, ["plan"])
    assert (result.exit_code, "--list" in result.stderr) == (1, True)
    assert CliRunner().invoke(app, ["plan", "dit-xl-2", "--steps", "0"]).exit_code == 2
