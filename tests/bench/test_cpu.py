"""The bench of rivals on CPUs: a whole run on small things, what it keeps, and that its page says what was found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench import cpu, cpu_cells, cpu_heats, cpu_report
from bench.cpu_cells import ANCHOR, QUICK, Size, cell_name
from bench.cpu_heats import heats_of
from bench.rivals import CPU, rival
from bench.rivals.process import RivalFailed
from bench.subjects import subject
from bench.table import Kept

SIZE = Size(
    subjects=("linear-64x32x48", "small-unet@8"),
    rivals=("torch-fp32", "sdnq-int8", ANCHOR),
    rounds=2,
    warm=1,
    pictures=1,
    at_once=2,
    threads=1,
)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("local")
def test_a_whole_run(root: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = replace(SIZE, root=root)
    cpu.run(size)
    found = json.loads((results / "cpu.json").read_text(encoding="utf-8"))
    layer, picture = found["subjects"]
    rows = {(row["rival"], bool(row.get("planned"))): row for row in picture["rows"]}
    plain, planned, theirs = rows[ANCHOR, False], rows[ANCHOR, True], rows["torch-fp32", False]
    assert len(plain["call_seconds"]) == len(theirs["call_seconds"]) == size.rounds
    assert 0 < plain["call_error"] < 0.1 and theirs["call_error"] < 1e-5
    assert (plain["picture_rows"], planned["picture_rows"], theirs["picture_rows"]) == (50, 33, 50)
    assert theirs["picture_error"] < 1e-4 < plain["picture_error"] and planned["picture_error"] > 0
    assert theirs["ours"]["call_seconds"] == plain["call_seconds"]
    assert rows["sdnq-int8", False].get("failed") == rival("sdnq-int8").why_not()
    assert rows["quanto-int8", False]["failed"] == "left out of this run"
    assert picture["macs"] > 1e6 and picture["products"]["products"] > 10
    assert layer["macs"] == 64 * 32 * 48 and layer["products"]["products"] == 1
    page = (results / "cpu.md").read_text(encoding="utf-8")
    assert "## small-unet@8" in page and f"| {ANCHOR} + plan |" in page and "| linear-64x32x48 |" in page
    assert f"small-unet@8: not judged, as {ANCHOR} or OpenVINO + NNCF did not run" in page
    assert (results / "cpu.png").stat().st_size > 1000

    def measured_again(*_: object) -> Any:
        raise AssertionError("a kept heat was measured again")

    monkeypatch.setattr(cpu, "run_heat", measured_again)
    cpu.run(size)


@pytest.mark.usefixtures("local")
def test_a_rival_that_fails_has_the_reason_and_others_go_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = vars(cpu_heats)["Process"]

    class Fragile(whole):  # type: ignore[misc]
        def ask(self, order: str, **arguments: Any) -> Any:
            if (self.rival, order) == ("torch-bf16", "open"):
                raise RivalFailed("open: it ran out of memory")
            if (self.rival, order, arguments.get("call")) == ("torch-fp32", "run", 1) and "keep" not in arguments:
                raise RivalFailed("run: it died")
            return super().ask(order, **arguments)

    monkeypatch.setattr(cpu_heats, "Process", Fragile)
    about, size = subject("linear-64x32x48", root), replace(SIZE, root=root)
    done = cpu_heats.run_heat(about, ["torch-fp32", "torch-bf16", "openvino-bf16"], size, Kept(root))
    first, second, third = done["rows"]
    assert (first["failed"], second["failed"]) == ("run: it died", "open: it ran out of memory")
    assert "failed" not in third and len(third["call_seconds"]) == 2 and third["disk"] > 0


def test_heats_have_ours_in_each() -> None:
    heats = list(heats_of(list(CPU), 7))
    assert sorted(one for heat in heats for one in heat if one != ANCHOR) == sorted(set(CPU) - {ANCHOR})
    assert all(heat[-1] == ANCHOR and len(heat) <= 7 for heat in heats)
    nncf = next(heat for heat in heats if "openvino-nncf-int8" in heat)
    assert {"openvino-nncf-int8-f32", "trdq-w8a8"} <= set(nncf)
    assert list(heats_of(["torch-fp32"], 1)) == [["torch-fp32"]]
    assert list(heats_of([ANCHOR], 3)) == [[ANCHOR]]


def test_cells_differ_in_what_decides_them() -> None:
    size, versions = asdict(SIZE), {"torch": "1"}
    name = cell_name("cpu", "sd15@32", ["a"], size, versions)
    assert name == cell_name("cpu", "sd15@32", ["a"], size | {"at_once": 9, "rivals": (), "root": "x"}, versions)
    others = [
        cell_name("cpu", "sd15@32", ["a", "b"], size, versions),
        cell_name("cpu", "sd15@32", ["a"], size | {"rounds": 5}, versions),
        cell_name("cpu", "sd15@32", ["a"], size, {"torch": "2"}),
        cell_name("cpu", "sd15@64", ["a"], size, versions),
    ]
    assert len({name, *others}) == 5


def _row(name: str, seconds: float, error: float, picture: float, **more: Any) -> dict[str, Any]:
    ours = {"call_seconds": [0.5, 0.5], "picture_seconds": [12.0], "planned_picture_seconds": [8.0]}
    told = {"rival": name, "call_seconds": [seconds] * 2, "call_error": error, "picture_seconds": [picture]}
    return {**told, "picture_rows": 50, "ours": ours, **more}


def test_the_page_judges_by_the_better_of_the_rivals_variants() -> None:
    rows = [
        _row("torch-fp32", 3.0, 0.0, 75.0),
        _row("openvino-nncf-int8", 0.6, 0.04, 15.0),
        _row("openvino-nncf-int8-f32", 0.7, 0.02, 17.0),
        {"rival": "quanto-int8", "failed": "not installed"},
        _row(ANCHOR, 0.5, 0.01, 12.0, note="the recipe"),
        _row(ANCHOR, 0.5, 0.01, 8.0, planned=True, call_seconds=None, call_error=None),
    ]
    products = {"products": 9, "large_products": 5, "large_share": 0.7, "large_median": 0.6, "large_worst": 0.5}
    one = {
        "subject": "sd15@32",
        "date": "d",
        "macs": 10**11,
        "load": [[[0.0, 0, 0], [1.0, 1, 1]]],
        "rows": rows,
        "products": products,
    }
    facts = {
        "machine": {"processor": "p", "date": "d"},
        "packages": {"torch": "1"},
        "threads": 2,
        "rounds": 2,
        "warm": 1,
    }
    page = cpu_report.markdown({**facts, "peaks": {"int8": 8e11, "float32": 1e11}}, [one])
    assert "| torch-fp32 | 3000 | 6.00x | 0 | 75 | 6.25x |" in page
    assert f"| {ANCHOR} + plan | - | - | - | 8 | 0.67x |" in page
    assert "quanto-int8 is not here: not installed" in page and "800 billion operations" in page
    assert f"- A call has 100 billion multiply-adds; torch-fp32 does them at 67% of the float32 peak; {ANCHOR}" in page
    assert f"{ANCHOR} does them at 50% of the int8 peak." in page
    assert "takes 1.20x ours a call (aim 1): reached" in page
    assert "1.88x ours with the plan a picture (aim 1.25): reached" in page
    assert "a call's error is 1.00%, theirs 2.00% (aim less): reached" in page
    assert "reach 70% of the int8 peak (aim 60%): reached" in page
    rows[1]["call_seconds"] = [0.4, 0.4]
    assert "takes 0.80x ours a call (aim 1): not reached" in cpu_report.markdown(
        {**facts, "peaks": {"int8": 1e9, "float32": 1e9}}, [one]
    )


def test_quick_and_full_name_what_there_is(tmp_path: Path) -> None:
    for size in (QUICK, cpu_cells.FULL):
        assert set(size.rivals) <= set(CPU) and ANCHOR in size.rivals
        assert [subject(name, tmp_path).name for name in size.subjects] == list(size.subjects)
    assert {"sd15@32", "sd15@64", "pixart@32", "pixart@64"} <= set(cpu_cells.FULL.subjects)
