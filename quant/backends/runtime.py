"""The one door to OpenVINO: telemetry off before its import, one Core, the properties that we compile with."""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Importing openvino sends an event home unless this package is missing; it takes the stub then. Nobody asked for that.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as openvino  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import (  # noqa: E402
    TorchScriptPythonDecoder as TorchScriptPythonDecoder,
)

log = logging.getLogger(__name__)

CPU_LISTING = Path("/proc/cpuinfo")


@functools.cache
def core() -> Any:
    """The process's OpenVINO core. Warns where 8-bit products clip."""
    if clips(CPU_LISTING):
        log.warning(
            "this CPU has no VNNI: sums of 8-bit products clip at 16 bits, and pictures of quantized profiles are "
            "farther from float than their cards say; serve float here, or use another machine"
        )
    return openvino.Core()


def clips(listing: Path) -> bool:
    """Whether an x86 CPU, by its /proc/cpuinfo, sums pairs of 8-bit products in 16 bits, which clips them; False where
    there is no such file.
    """
    flags = set(listing.read_text(encoding="utf-8").split()) if listing.is_file() else set()
    return "avx2" in flags and flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


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


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGE, _LARGEST = 1 << 20, 32 << 20
_tight = threading.Lock()
_tight_now = 0


@contextmanager
def tight_memory() -> Iterator[None]:
    """While entered by anybody, glibc maps blocks of a megabyte and more one by one, so that freed ones are gone.

    Else it learns from what is freed to keep blocks of up to 32 MB in its heap, where small ones that stay pin them:
    a trace of forty layers of 17 MB took 9 GB that way, and 0.2 GB this way. Afterwards what it would have
    learned holds, since mapping costs page faults, which is too much for activations.
    """
    _set_large(_LARGE, entering=1)
    try:
        yield
    finally:
        _set_large(_LARGEST, entering=-1)


def _set_large(threshold: int, entering: int) -> None:
    global _tight_now
    with _tight:
        _tight_now += entering
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
        if mallopt is not None and (_tight_now == 0 or (_tight_now, entering) == (1, 1)):
            mallopt(_MMAP_THRESHOLD, threshold)
            mallopt(_TRIM_THRESHOLD, 2 * threshold)


IN_BFLOAT16 = {"INFERENCE_PRECISION_HINT": "bf16"}
"""What to ask for beside `properties`, so that what is not integer is computed in bfloat16."""


def properties(threads: int) -> dict[str, Any]:
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
    }
