"""Tables of configs: the nearest shape is found, measured ones come first, broken files are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.errors import BackendError
from quant.kernels import tuning
from quant.kernels.tuning import Config, Entry, Table


def config(rows: int) -> Config:
    return Config(rows=rows, columns=64, depth=64, group=8, warps=4, stages=3)


def table(*entries: tuple[str, int, int, int, int]) -> Table:
    made = tuple(Entry(kernel=kernel, m=m, n=n, k=k, config=config(rows)) for kernel, m, n, k, rows in entries)
    return Table(device="test", measured=True, note="by a test", entries=made)


@pytest.fixture(autouse=True)
def only_the_shipped_one() -> Iterator[None]:
    yield
    tuning.activate(None)


def test_the_nearest_shape_counts() -> None:
    found = table(("a", 16, 64, 64, 16), ("a", 4096, 64, 64, 128), ("b", 16, 64, 64, 32))
    for m, rows in ((1, 16), (16, 16), (200, 16), (300, 128), (1 << 20, 128)):
        known = found.find("a", m, 64, 64)
        assert known is not None and known.rows == rows
    assert found.find("c", 1, 1, 1) is None


def test_a_measured_table_comes_first_and_the_shipped_one_fills_it_up() -> None:
    shipped = tuning.config("int8_linear", 4000, 4096, 4096)
    tuning.activate(table(("int8_linear", 1, 1, 1, 48)))
    assert tuning.config("int8_linear", 4000, 4096, 4096).rows == 48
    assert tuning.config("int8_conv", 4096, 320, 2880).rows == 128
    tuning.activate(None)
    assert tuning.config("int8_linear", 4000, 4096, 4096) == shipped
    with pytest.raises(BackendError, match="no table has configs of a kernel 'nothing'"):
        tuning.config("nothing", 1, 1, 1)


def test_the_shipped_table_says_that_nobody_measured_it() -> None:
    shipped = tuning.read(tuning.SHIPPED)
    assert not shipped.measured and "not measured" not in shipped.device and "measured on no device" in shipped.note
    assert all(entry.microseconds is None for entry in shipped.entries)
    kernels = {f"int{bits}_linear{kind}" for bits in (4, 8) for kind in ("", "_half", "_float")} | {"int8_conv"}
    assert {entry.kernel for entry in shipped.entries} == kernels


def test_tables_go_to_disk_and_back(tmp_path: Path) -> None:
    path, made = tmp_path / "sub" / tuning.file_name("NVIDIA H100 80GB HBM3"), table(("a", 1, 2, 3, 16))
    tuning.write(path, made)
    assert path.name == "nvidia-h100-80gb-hbm3.json" and tuning.read(path) == made
    path.write_text(json.dumps({"device": "x"}), encoding="utf-8")
    with pytest.raises(BackendError, match="is no table of kernel configs"):
        tuning.read(path)
    with pytest.raises(BackendError, match=r"nowhere.json is no table"):
        tuning.read(tmp_path / "nowhere.json")
