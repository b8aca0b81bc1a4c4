"""`quantize` and `evaluate` on folders never seen: of prompts, classes, nothing; their files and their faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from halftone import hub
from halftone.cli import app
from pipelines.tiny import save_tiny
from tests.pipelines.promptless import save_promptless


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            (save_tiny if name == "stable-diffusion" else save_promptless)(name, root / name)
            sheet = {"defaults": {"width": 16, "height": 16, "num_inference_steps": 3, "guidance_scale": 1.0}}
            if name in {"stable-diffusion", "ldm"}:
                sheet["defaults"] |= {"width": 32, "height": 32}
            (root / name / "halftone.json").write_text(json.dumps(sheet))
        return root / name

    return folder


@pytest.fixture(autouse=True)
def _own_data(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))
    monkeypatch.setenv("HALFTONE_THREADS", "1")


def halftone(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answer(*arguments: object) -> Any:
    result = halftone(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*arguments: object) -> str:
    result = halftone(*arguments)
    assert (result.exit_code, result.stdout.strip()) == (1, ""), result.output
    return result.stderr


@pytest.mark.parametrize("name", ["ddpm", "dit"])
def test_a_model_without_prompts_goes_all_the_way(name: str, folder_of: Callable[[str], Path], alone: Path) -> None:
    made = answer("quantize", folder_of(name), "--samples", 3, "--seed", 5)
    manifest = json.loads((Path(made["folder"]) / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["calibration"]["prompts"], manifest["calibration"]["seed"]) == (3, 5)
    rows = answer("evaluate", folder_of(name), "--samples", 5, "--seed", 2, "--out", "out")
    assert [(row["profile"], row["prompts"]) for row in rows] == [("float", 5), ("w8a8", 5)]
    assert (rows[0]["psnr_db"], rows[0]["identical"]) == (None, rows[0]["prompts"])
    assert rows[1]["psnr_db"] > 10 and rows[1]["identical"] == 0
    assert rows[0]["trajectory_distance"] == 0.0 < rows[1]["trajectory_distance"]
    report = json.loads((alone / "out/evaluation.json").read_text(encoding="utf-8"))
    each = report["profiles"][1]["each"]
    assert [row["seed"] for row in each] == [2, 3, 4, 5, 6]
    assert [row["prompt"] for row in each] == ([None] * 5 if name == "ddpm" else [0, 0, 1, 2, 3])
    assert len(report["profiles"][1]["trajectory"]) == report["settings"]["num_inference_steps"]


def test_an_unknown_folder_gets_its_own_size_and_no_guidance(tmp_path: Path) -> None:
    [row] = answer("evaluate", save_promptless("ddpm", tmp_path / "plain"), "--samples", 1, "--out", "out")
    assert row["profile"] == "float"
    settings = json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))["settings"]
    assert settings == {"width": 16, "height": 16, "num_inference_steps": 25, "guidance_scale": 1.0}


def test_classes_come_from_a_file(folder_of: Callable[[str], Path]) -> None:
    Path("classes.txt").write_text("verdant\n3\nred\n", encoding="utf-8")
    answer("evaluate", folder_of("dit"), "--prompts", "classes.txt", "--limit", 2, "--out", "out")
    each = json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))["profiles"][0]["each"]
    assert [row["prompt"] for row in each] == [1, 3]


def test_files_replace_those_of_an_earlier_run_and_nothing_else(folder_of: Callable[[str], Path]) -> None:
    out = Path("out")
    out.mkdir()
    for name in ("evaluation.json", "temporal.png", "notes.txt"):
        (out / name).write_text("old", encoding="utf-8")
    result = halftone("evaluate", folder_of("ddim"), "--samples", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "evaluation.md", "samples.png", "notes.txt"}
    assert "out/evaluation.md" in result.stderr
    page = (out / "evaluation.md").read_text(encoding="utf-8")
    assert "| float | 2 | 2 | 1.0000 |" in page
    assert "](samples.png)" in page and "](temporal.png)" not in page
    assert "prompt accuracy" not in page.partition("PSNR and SSIM:")[0], "columns without numbers are left out"
    samples = np.array(Image.open(out / "samples.png").convert("RGB"))
    assert len(np.unique(samples)) > 20


def test_a_fault_on_the_way_leaves_the_earlier_files_whole(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer("evaluate", folder_of("ddim"), "--samples", 1, "--out", "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halftone.evaluation_files.plot_samples", full)
    assert "No space left" in refusal("evaluate", folder_of("ddim"), "--samples", 2, "--out", "out")
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("ddpm", "a red box", "makes pictures without prompts; leave --prompts out"),
        ("dit", "a red box", "'a red box' is no class: this model knows classes 0 to 3, or a name such as red"),
        ("stable-diffusion", None, "no prompts of its own; give a file of them by --prompts"),
    ],
)
def test_prompts_that_a_model_cannot_use(
    name: str, line: str | None, text: str, folder_of: Callable[[str], Path]
) -> None:
    given: list[object] = []
    if line is not None:
        Path("p.txt").write_text(line, encoding="utf-8")
        given = ["--prompts", "p.txt"]
    assert text in refusal("quantize", folder_of(name), *given)
    assert text in refusal("evaluate", folder_of(name), *given, "--out", "out")
    assert not Path("data/artifacts").exists() and not Path("out").exists(), "nothing half-saved"


def broken(folder: Path, how: str) -> Path:
    """A copy of a model folder with one thing wrong."""
    copy = Path(shutil.copytree(folder, Path("broken")))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "pickled":
        weights.rename(weights.with_suffix(".bin"))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no index":
        (copy / "model_index.json").unlink()
    elif how == "nan":
        tensors = load_file(weights)
        tensors["down_blocks.0.resnets.0.conv1.weight"][0, 0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("pickled", "unet has no .safetensors file; other formats are never loaded"),
        ("cut", "cannot be loaded"),
        ("no index", "has no broken/model_index.json"),
        ("nan", "NaN"),
    ],
)
def test_broken_folders_are_told_and_nothing_is_saved(how: str, text: str, folder_of: Callable[[str], Path]) -> None:
    folder = broken(folder_of("ddpm"), how)
    for command in (("quantize", folder, "--samples", 2), ("evaluate", folder, "--samples", 1, "--out", "out")):
        assert text in refusal(*command)
    left = [path for path in Path("data").rglob("*") if path.is_file()] if Path("data").exists() else []
    assert left == [], "nothing half-saved"
    assert not Path("out").exists()


def test_names_that_do_not_exist(folder_of: Callable[[str], Path]) -> None:
    assert "has no profile 'w0a0'; it has: float" in refusal("evaluate", folder_of("ddpm"), "--profiles", "w0a0")
    assert "no recipe" in refusal("quantize", folder_of("ddpm"), "--recipe", "w0a0", "--samples", 1)
    assert "no model 'nobody'" in refusal("evaluate", "nobody")
    assert "nowhere.txt" in refusal("quantize", folder_of("stable-diffusion"), "--prompts", "nowhere.txt")
    Path("file").write_text("x", encoding="utf-8")
    assert "is no folder" in refusal("evaluate", folder_of("ddpm"), "--out", "file")
    assert "is no folder" in refusal("evaluate", folder_of("ddpm"), "--out", "file/below")


def test_a_repository_is_pulled_once(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pulls: list[str] = []

    def download(repo: str, revision: str | None, folder: Path) -> None:
        pulls.append(repo)
        shutil.copytree(folder_of("ddpm"), folder, dirs_exist_ok=True)

    monkeypatch.setattr(hub, "_download", download)
    answer("quantize", "somebody/tiny-ddpm", "--samples", 1)
    rows = answer("evaluate", "somebody/tiny-ddpm", "--samples", 1)
    assert [row["profile"] for row in rows] == ["float", "w8a8"]
    assert pulls == ["somebody/tiny-ddpm"]
    assert "exists" in refusal("evaluate", "somebody-else/tiny-ddpm"), "another's model of that name is not taken"


def test_a_repository_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot download somebody/a-model" in refusal("quantize", "somebody/a-model")
