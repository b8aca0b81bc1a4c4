"""README and docs name what exists: every variable, route, command and file; their Python parses."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jobs.settings import Settings
from service.settings import Settings as GatewaySettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FOLDERS = ("halftone/", "service/", "jobs/", "workers/", "pipelines/", "quant/", "zoo/", "bench/", "deploy/", "tests/")


def variables(settings: type[Settings]) -> set[str]:
    """Every environment variable that a settings class reads."""
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        choices = getattr(field.validation_alias, "choices", None)
        names |= {str(choice) for choice in choices} if choices else {f"HALFTONE_{name.upper()}"}
    return names


@pytest.mark.parametrize("settings", [GatewaySettings, WorkerSettings])
def test_every_variable_is_described(settings: type[Settings]) -> None:
    assert {name for name in variables(settings) if f"`{name}`" not in README} == set()


def test_every_described_variable_exists() -> None:
    known = variables(GatewaySettings) | variables(WorkerSettings) | {"HALFTONE_URL", "HALFTONE_API_KEY"}
    named = set(re.findall(r"HALFTONE_[A-Z_]+[A-Z]", README + ARCHITECTURE))
    assert named - known == set()


def test_every_route_is_described() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "service/routes").glob("*.py"))
    routes = set(re.findall(r'@router\.\w+\(\s*"([^"]+)"', sources))
    assert len(routes) > 10
    plain = re.sub(r"\{\w+\}", "{id}", README)
    assert {route for route in routes if re.sub(r"\{\w+\}", "{id}", route) not in plain} == set()


def test_every_described_series_exists() -> None:
    sources = "\n".join((ROOT / room / "metrics.py").read_text(encoding="utf-8") for room in ("service", "workers"))
    named = set(re.findall(r"`halftone_([a-z_]+)`", README))
    assert len(named) > 5
    assert {name for name in named if name.removesuffix("_total") not in sources} == set()


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "architecture"])
def test_named_files_exist(text: str) -> None:
    named = {name for name in re.findall(r"`([\w./-]+)`", text) if name.startswith(FOLDERS)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_python_in_the_readme_parses() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert ast.parse(block).body


def test_the_first_screen_says_it_all() -> None:
    screen = "\n".join(README.splitlines()[:26])
    for needed in ("make serve", "make test", "curl", "docs/pictures/"):
        assert needed in screen
