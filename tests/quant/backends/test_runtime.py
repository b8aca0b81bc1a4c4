"""What is asked of OpenVINO and of the C library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quant.backends import runtime
from quant.backends.runtime import clips, give_back_memory, has_bfloat16, properties


def test_layers_that_stay_float_are_computed_in_float32() -> None:
    asked = properties(3)
    assert (asked["INFERENCE_PRECISION_HINT"], asked["INFERENCE_NUM_THREADS"]) == ("f32", 3)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="what the CPU has is read from /proc/cpuinfo")
def test_bfloat16_is_what_the_cpu_has() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert has_bfloat16() == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_a_cpu_whose_products_clip_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listing = tmp_path / "cpuinfo"
    monkeypatch.setattr(runtime, "CPU_LISTING", listing)
    for flags, expected in {"": False, "avx2 avx512f": True, "avx2 avx_vnni": False, "asimd dotprod": False}.items():
        listing.write_text(f"flags : fpu {flags}\n", encoding="utf-8")
        caplog.clear()
        runtime.core.__wrapped__()
        assert clips(listing) == ("no VNNI" in caplog.text) == expected
    assert not clips(tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library is another")
def test_freed_memory_goes_back_to_the_system() -> None:
    code = (
        "import ctypes\n"
        "from quant.backends.runtime import give_back_memory\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm', encoding='utf-8').read().split()[1]) * 4096\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "blocks = [libc.malloc(16000) for _ in range(20000)]\n"
        "for block in blocks: ctypes.memset(block, 1, 16000)\n"
        "for number, block in enumerate(blocks):\n"
        "    if number % 10: libc.free(ctypes.c_void_p(block))\n"  # what stays keeps glibc from shrinking its heap
        "before = resident(); give_back_memory(); print(before - resident())\n"
    )
    freed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(freed.stdout) > 200_000_000
    assert give_back_memory() in (True, False)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the C library is another")
def test_blocks_that_are_freed_are_gone_while_memory_is_tight() -> None:
    code = (
        "import ctypes\n"
        "from quant.backends.runtime import tight_memory\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm', encoding='utf-8').read().split()[1]) * 4096\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "def given_back(size=4 << 20):\n"
        "    libc.free(ctypes.c_void_p(libc.malloc(30 << 20)))\n"  # from such a one glibc learns to map no smaller ones
        "    blocks = []\n"
        "    for _ in range(50):\n"
        "        blocks.append(libc.malloc(size)); ctypes.memset(blocks[-1], 1, size)\n"
        "        libc.malloc(2000)\n"  # stays, above each large one
        "    before = resident()\n"
        "    for block in blocks: libc.free(ctypes.c_void_p(block))\n"
        "    return before - resident()\n"
        "with tight_memory():\n"
        "    with tight_memory(): pass\n"
        "    tight = given_back()\n"
        "print(tight, given_back())\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tight, otherwise = map(int, told.stdout.split())
    assert tight > 180_000_000
    assert otherwise < 50_000_000
