"""The Makefile, .ci/run and the version: what newcomers and continuous integration type."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from halftone.version import __version__

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    """What make would run."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PORT", "DATA", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    done = subprocess.run(
        ["make", "-n", "-B", *arguments], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout


@pytest.mark.parametrize("target", ["serve", "test", "check", "bench", "zoo", "install", "help"])
def test_every_target_is_understood(target: str) -> None:
    assert make(target)


def test_serve_takes_port_and_data() -> None:
    assert "-m halftone serve --port '8123' --data '/a folder/x'" in make("serve", "PORT=8123", "DATA=/a folder/x")
    assert make("serve").rstrip().endswith("-m halftone serve --port '8000'")


def test_serve_needs_no_tools_of_developers() -> None:
    assert "[dev]" not in make("serve")
    assert "[dev]" in make("test")


def test_the_service_takes_the_place_of_the_shell() -> None:
    """Else a SIGTERM to the process group ends the shell, and make with it, while the service still stops."""
    assert "\nexec .venv/bin/python -m halftone serve" in make("serve")


def test_nothing_is_installed_twice(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    for name in (
        "pyproject.toml",
        "constraints.txt",
        ".venv/bin/python",
        ".venv/.installed-serve",
        ".venv/.installed-dev",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    done = subprocess.run(
        ["make", "-n", "serve", "test"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True
    )
    assert "pip install" not in done.stdout
    assert "-m pytest" in done.stdout


def test_an_old_python_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"))
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "serve", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "is Python 3.9.2" in done.stdout


def test_ci_runs_the_checks_and_the_suite() -> None:
    script = ROOT / ".ci/run"
    assert "make check test" in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)


def test_constraints_pin_exactly_and_cover_every_dependency() -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = {normal(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in declared} <= pinned


def normal(name: str) -> str:
    """A distribution's name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert {project["version"], first[1]} == {__version__}
