"""How long work takes on the device at hand, and what device that is. Must not know what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import quant

Work = Callable[[], object]


def name_of(device: torch.device) -> str:
    """The GPU's name, or the word for Triton's interpreter, whose times say nothing."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"


def device() -> torch.device:
    """Where kernels run here.

    Raises:
        SystemExit: nowhere, with the reason.
    """
    try:
        from quant.backends.cuda import device_at_hand

        return device_at_hand()
    except (ModuleNotFoundError, quant.BackendError) as error:
        raise SystemExit(f"bench gpu: {error}") from error


def seconds(work: Work) -> float:
    """Of one run, from idle device to idle device."""
    settle()
    started = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - started


def microseconds(work: Work, repeats: int) -> float:
    """Of one run among several in a row, by the device's own clock where it has one."""
    if not torch.cuda.is_available():
        return 1e6 * sum(seconds(work) for _ in range(repeats)) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(1e3 * begin.elapsed_time(end) / repeats)


def settle() -> None:
    """Waits until the device has nothing to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
