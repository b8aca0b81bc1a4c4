"""The house rules that a machine can keep: sizes, first sentences, and what importing the gateway may load."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("halftone", "service", "jobs", "workers", "pipelines", "quant", "zoo", "bench", "tests")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def functions(path: Path) -> list[int]:
    """Lines of each function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_functions_are_small(path: Path) -> None:
    limit = 400 if "tests" in path.parts or "kernels" in path.parts else 300
    assert path.read_text(encoding="utf-8").count("\n") <= limit
    assert max(functions(path), default=0) <= 60


def test_most_functions_fit_in_a_glance() -> None:
    sizes = [size for path in FILES if "tests" not in path.parts for size in functions(path)]
    assert statistics.median(sizes) < 10


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "the first statement must be a docstring"


@pytest.mark.parametrize("room", ["service", "service.app", "jobs", "jobs.queue", "halftone.cli", "halftone.client"])
def test_torch_stays_unloaded(room: str) -> None:
    code = f"import sys, {room}; sys.exit(' '.join({{'torch', 'diffusers', 'openvino'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_imports_run_one_way() -> None:
    tool = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout
