"""A rival's process: it does orders, tells faults as reasons, and its death is told too."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import quant
from bench.rivals.process import Process, RivalFailed
from bench.subjects import subject


def test_orders_and_faults(tmp_path: Path) -> None:
    answer = tmp_path / "answer.safetensors"
    with Process("torch-fp32", "linear-64x32x48", tmp_path.resolve(), 1) as process:
        with pytest.raises(RivalFailed, match="run: RuntimeError: the rival was not opened"):
            process.ask("run", call=0)
        assert process.ask("build")["seconds"] >= 0
        assert process.ask("open")["rss_before"] > 0
        assert process.ask("run", call=1, keep=str(answer))["seconds"] > 0
        truth = subject("linear-64x32x48", tmp_path).test()[1].answer
        assert quant.relative_error(load_file(answer)["answer"], truth) < 1e-5
        assert process.ask("run", call=0, rows=1)["seconds"] > 0
        assert process.ask("run", call=0, rows=4)["seconds"] > 0
        weighed = process.ask("weigh")
        assert weighed["peak"] >= weighed["rss"] > 0 and weighed["disk"] == 0
        with pytest.raises(RivalFailed, match="linear-64x32x48 is no pipeline: it draws no pictures"):
            process.ask("draw")
        process.kill()
        with pytest.raises(RivalFailed, match="its process ended with status -9"):
            process.ask("run", call=0)


def test_a_rival_that_cannot_start_tells_why(tmp_path: Path) -> None:
    with (
        Process("magic", "linear-64x32x48", tmp_path.resolve(), 1) as process,
        pytest.raises(RivalFailed, match=r"status 1: .*no rival 'magic'"),
    ):
        process.ask("open")
