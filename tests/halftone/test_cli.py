"""The command line against the whole service: files, tables, JSON, and faults without a traceback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from halftone.cli import app
from halftone.version import __version__

GONE = "0" * 32
ROOT = Path(__file__).parents[2]


def halftone(*arguments: str) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str) -> Any:
    """What a command prints with --json."""
    result = halftone(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _at_the_service(alone: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "serving" in request.fixturenames:
        monkeypatch.setenv("HALFTONE_URL", request.getfixturevalue("serving").url)


def test_generate_writes_a_file_named_after_the_prompt(serving: Any, alone: Path) -> None:
    result = halftone("generate", "A red circle!", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert (alone / "a-red-circle-7.png").read_bytes()[:4] == b"\x89PNG"
    assert "a-red-circle-7.png" in result.stdout
    assert halftone("generate", "A red circle!", "--seed", "7").exit_code == 0
    assert (alone / "a-red-circle-7-2.png").is_file(), "nothing is overwritten that was not named"


def test_generate_takes_every_parameter(serving: Any, alone: Path) -> None:
    made = answer(
        "generate", "hello", "-o", "x.webp", "-n", "2", "--size", "32x24", "--steps", "3", "--guidance", "2.5",
        "--seed", "5", "--profile", "float", "--model", "null", "--negative", "blue", "--priority", "high",
    )  # fmt: skip
    assert [file["path"] for file in made["files"]] == ["x-0.webp", "x-1.webp"]
    assert made["files"][1]["sha256"] == hashlib.sha256((alone / "x-1.webp").read_bytes()).hexdigest()
    used = made["used"]
    assert (used["width"], used["height"], used["num_inference_steps"], used["guidance_scale"]) == (32, 24, 3, 2.5)
    job = answer("jobs", "show", made["job_id"])
    assert (job["request"]["negative_prompt"], job["request"]["priority"]) == ("blue", "high")


def test_models_and_profiles_as_tables_and_json(serving: Any) -> None:
    assert "null" in halftone("models").stdout
    assert "float" in halftone("profiles").stdout
    assert any(model["id"] == "null" for model in answer("models"))
    assert any(card["backend"] == "null" for card in answer("profiles"))


def test_profiles_are_drawn_and_filtered(serving: Any, alone: Path) -> None:
    result = halftone("profiles", "--plot", "all.png", "--model", "shapes-unet")
    assert result.exit_code == 0 and "shapes-dit" not in result.stdout and "all.png" in result.stderr
    assert Path("all.png").read_bytes()[:4] == b"\x89PNG"
    cards = answer("profiles", "--local", "--model", "shapes-unet", "--plot", "all.svg")
    assert {card["model"] for card in cards} == {"shapes-unet"} and "<svg" in Path("all.svg").read_text(
        encoding="utf-8"
    )
    assert {axis for card in cards for axis in card["pareto"]} == {"seconds", "bytes"}
    for given, text in (
        (("--plot", "all.gif"), "ends in .png or .svg"),
        (("--model", "nobody"), "no model 'nobody'; known models: "),
        (("--model", "null", "--plot", "null.png"), "no profile was measured"),
    ):
        refused = halftone("profiles", *given)
        assert refused.exit_code == 1 and text in refused.stderr
    assert not Path("null.png").exists()


def test_jobs_from_list_to_cancel(serving: Any) -> None:
    import halftone as clients

    with clients.Client(serving.url) as client:
        job = client.submit("sleep 5", num_inference_steps=10)
    assert answer("jobs", "list", "--limit", "1")["data"][0]["id"] == job.id
    assert job.id in halftone("jobs", "list").stdout
    assert halftone("jobs", "cancel", job.id).exit_code == 0
    events = [json.loads(line) for line in halftone("jobs", "watch", job.id, "--json").stdout.splitlines()]
    assert events[-1]["type"] == "canceled"
    assert "canceled" in halftone("jobs", "watch", job.id).stdout
    assert "canceled" in halftone("jobs", "show", job.id).stdout
    assert [found["id"] for found in answer("jobs", "list", "--status", "canceled", "--limit", "1")["data"]] == [job.id]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("generate", "hello", "--profile", "w0a0"), "unknown_profile", "w0a0"),
        (("generate", "hello", "--size", "big"), "invalid_request", "64x64"),
        (("generate", "hello", "-o", "x.bmp"), "invalid_request", "must end in"),
        (("generate", "hello", "--seed", "-1"), "invalid_request", "seed"),
        (("jobs", "show", GONE), "not_found", "no"),
        (("jobs", "show", "../x"), "invalid_request", "32 hexadecimal"),
    ],
)
def test_faults_are_a_line_on_stderr(serving: Any, arguments: tuple[str, ...], code: str, text: str) -> None:
    result = halftone(*arguments)
    assert (result.exit_code, result.stdout.strip()) == (1, "")
    assert result.stderr.startswith("halftone: ")
    assert text in result.stderr
    told = json.loads(halftone(*arguments, "--json").stderr.splitlines()[-1])
    assert told["error"]["code"] == code


def test_no_server_is_told_with_a_hint() -> None:
    result = halftone("models", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "halftone serve" in result.stderr


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (("generate", "hello", "-o", "missing/x.png"), "missing/x.png"),
        (("generate", "hello", "-o", "folder.png"), "folder.png is a folder"),
        (("generate", "hello", "--local", "-o", "missing/x.png"), "missing/x.png"),
        (("compare", "hello", "--html", "missing/x.html"), "missing/x.html"),
        (("compare", "hello", "--html", "folder.png"), "folder.png is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    serving: Any, alone: Path, command: tuple[str, ...], text: str
) -> None:
    Path("folder.png").mkdir()
    before = answer("jobs", "list", "--limit", "1")["data"]
    result = halftone(*command)
    assert result.exit_code == 1
    assert text in result.stderr
    assert answer("jobs", "list", "--limit", "1")["data"] == before, "nothing was asked of the service"


def test_a_file_that_exists_is_written_again(serving: Any, alone: Path) -> None:
    Path("x.png").write_bytes(b"")
    assert halftone("generate", "hello", "-o", "x.png").exit_code == 0
    assert Path("x.png").read_bytes()[:4] == b"\x89PNG"


def test_numbers_that_are_none_are_a_line() -> None:
    result = halftone("generate", "hello", "--guidance", "nan", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "guidance_scale: nan cannot be sent as JSON" in result.stderr


def test_key_tells_the_hash_that_the_service_takes() -> None:
    made = answer("key")
    assert hashlib.sha256(made["key"].encode()).hexdigest() == made["sha256"]
    assert len(made["key"]) >= 40
    assert "HALFTONE_API_KEY_HASHES" in halftone("key").stderr


def test_help_and_version_are_quick_and_load_no_torch() -> None:
    assert halftone("--version").stdout.strip() == __version__
    code = "import sys; sys.argv = ['halftone', '--help']; from halftone.cli import app\n"
    code += "try: app()\nexcept SystemExit: sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False).returncode == 0
    for command in ("serve", "generate", "models", "profiles", "jobs", "quantize", "evaluate", "pull", "key"):
        result = halftone(command, "--help")
        assert result.exit_code == 0
        assert command in halftone("--help").stdout
        assert command in {"serve", "jobs"} or "--json" in result.stdout


def test_pull_without_network_is_told(monkeypatch: pytest.MonkeyPatch, alone: Path) -> None:
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = halftone("pull", "somebody/a-model")
    assert result.exit_code == 1
    assert "cannot download somebody/a-model" in result.stderr
    assert list((alone / "data/models").iterdir()) == [], "nothing half-made stays"


@pytest.mark.parametrize("repo", ["a-model", "../a/b", "a/b/c", "a/../b", "a b/c"])
def test_pull_takes_repositories_only(repo: str) -> None:
    result = halftone("pull", repo)
    assert result.exit_code == 1
    assert "owner/name" in result.stderr


def test_a_prompt_file_must_hold_prompts(alone: Path) -> None:
    (alone / "empty.txt").write_text("\n \n")
    assert "no prompt" in halftone("evaluate", "null", "--prompts", "empty.txt").stderr
    (alone / "bytes.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in halftone("quantize", "null", "--prompts", "bytes.txt").stderr
    assert "nowhere.txt" in halftone("evaluate", "null", "--prompts", "nowhere.txt").stderr
