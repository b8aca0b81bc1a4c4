"""How products are cut into tiles: a table by kernel and shape, looked up without measuring. Must not know kernels.

The shipped table is `h100.json`; `activate` puts a measured one before it.
"""

from __future__ import annotations

import json
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quant.errors import BackendError

SHIPPED: Final = Path(__file__).with_name("h100.json")

_STRICT = ConfigDict(extra="forbid", frozen=True)


class Config(BaseModel):
    """One way to run a product: a tile of rows and columns, so many numbers of the sum at a time (bytes of packed
    weights), tiles of so many rows next to each other, warps of a program, loads that are under way.
    """

    model_config = _STRICT

    rows: int = Field(ge=16, le=512)
    columns: int = Field(ge=16, le=512)
    depth: int = Field(ge=16, le=512)
    group: int = Field(ge=1)
    warps: int = Field(ge=1, le=32)
    stages: int = Field(ge=1, le=8)

    def as_launched(self) -> dict[str, int]:
        """By the names that kernels of products, and their launch, have for it."""
        tile = {"block_rows": self.rows, "block_columns": self.columns, "block_depth": self.depth, "group": self.group}
        return {**tile, "num_warps": self.warps, "num_stages": self.stages}


class Entry(BaseModel):
    """The config of a kernel for products [m, k] x [k, n]."""

    model_config = _STRICT

    kernel: str
    m: int = Field(ge=1)
    n: int = Field(ge=1)
    k: int = Field(ge=1)
    config: Config
    microseconds: float | None = Field(None, description="What it took, where it was measured.")

    def distance(self, m: int, n: int, k: int) -> float:
        """How far another shape is, in squared octaves."""
        pairs = ((self.m, m), (self.n, n), (self.k, k))
        return sum(math.log2(one / other) ** 2 for one, other in pairs)


class Table(BaseModel):
    """Configs for a device. `measured` says whether they were measured on it, `note` how they came about."""

    model_config = _STRICT

    device: str
    measured: bool
    note: str
    entries: tuple[Entry, ...]

    def find(self, kernel: str, m: int, n: int, k: int) -> Config | None:
        """The config of the nearest shape that the table has for a kernel; the first of several; None without one."""
        known = [entry for entry in self.entries if entry.kernel == kernel]
        return min(known, key=lambda entry: entry.distance(m, n, k)).config if known else None


def read(path: Path) -> Table:
    """A table from a JSON file.

    Raises:
        BackendError: it cannot be read, or is no table.
    """
    try:
        return Table.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise BackendError(f"{path} is no table of kernel configs: {error}") from error


def write(path: Path, table: Table) -> None:
    """A table as a JSON file, whole or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(table.model_dump(mode="json", exclude_none=True), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


_active: list[Table] = []


def activate(table: Table | None) -> None:
    """Has products look configs up in this table first, in this process from now on; None: in the shipped one alone."""
    _active[:] = [] if table is None else [table]
    _find.cache_clear()


def config(kernel: str, m: int, n: int, k: int) -> Config:
    """The config for a product of that kernel and shape. Shapes count by powers of two.

    Raises:
        BackendError: no table knows the kernel.
    """
    return _find(kernel, *((max(1, size) - 1).bit_length() for size in (m, n, k)))


@lru_cache(maxsize=4096)
def _find(kernel: str, m: int, n: int, k: int) -> Config:
    for table in (*_active, _shipped()):
        found = table.find(kernel, 1 << m, 1 << n, 1 << k)
        if found is not None:
            return found
    raise BackendError(f"no table has configs of a kernel {kernel!r}")


@cache
def _shipped() -> Table:
    return read(SHIPPED)


def file_name(device: str) -> str:
    """Under what name a table measured on a device is kept."""
    return "".join(letter if letter.isalnum() else "-" for letter in device.lower()) + ".json"
