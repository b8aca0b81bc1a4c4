"""The one door to OpenVINO: telemetry off before its import, one Core, the properties that we compile with."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

# Importing openvino sends an event home unless this package is missing; it takes the stub then. Nobody asked for that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as openvino  # noqa: E402


@functools.cache
def core() -> Any:
    """The process's OpenVINO core."""
    return openvino.Core()


def version() -> str:
    """OpenVINO's version and the CPU it runs on: what compiled code depends on."""
    return f"{openvino.get_version()} {core().get_property('CPU', 'FULL_DEVICE_NAME')}"


@functools.cache
def has_bfloat16() -> bool:
    """Whether the CPU has units for bfloat16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def give_back_memory() -> bool:
    """Has the C library give back to the system what was freed, which glibc keeps otherwise; whether anything was.

    Tracing and compiling free gigabytes in small pieces: SD1.5's shape leaves 6.5 GB behind, 1.0 GB after this.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return trim is not None and bool(trim(0))


IN_BFLOAT16 = {"INFERENCE_PRECISION_HINT": "bf16"}
"""What to ask for beside `properties`, so that what is not integer is computed in bfloat16."""


def properties(threads: int, cache_dir: Path) -> dict[str, Any]:
    """What we ask of the CPU plugin.

    float32 wherever a layer is not integer: the default would silently run float layers in bfloat16 on some CPUs.
    One stream, since one call runs at a time; no pinning, since other work shares the machine's cores.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": str(cache_dir),
    }
