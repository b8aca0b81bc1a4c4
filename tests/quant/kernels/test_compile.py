"""Kernels compile for an H100 that is not at hand: what the interpreter lets pass, the compiler may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.quant.kernels import compile_for

ROOT = Path(__file__).parents[3]
SHARED = 227 * 1024
"""Bytes of shared memory that a program may have there."""


def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.quant.kernels.compile_for"],
        cwd=ROOT,
        env=own | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == compile_for.FEW | {name for name, _ in compile_for.ones()}
    assert all(kernel["shared"] <= SHARED for kernel in found.values())
    for name in compile_for.FEW - {"fused", "fp8 rows"}:
        assert found[name]["products"] and all("wgmma" in one and ".s8.s8" in one for one in found[name]["products"])
