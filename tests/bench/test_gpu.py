"""`bench gpu`: what it measures, what it leaves out and why, and a whole quick run in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from bench import gpu, gpu_products, gpu_time, gpu_tune
from bench.calls import Answered
from bench.gpu_tune import Shape
from bench.made import Layer
from bench.rivals import Runner, Work, rival
from bench.rivals.torch_runner import without_gpu
from quant.kernels import tuning
from quant.kernels.tuning import Config

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def bench(*arguments: str, interpreted: bool) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env=own | ({"TRITON_INTERPRET": "1"} if interpreted else {}),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_quick_run_shows_that_it_works(tmp_path: Path) -> None:
    subjects = [f"--subject={name}" for name in (*gpu.QUICK.subjects, "small-video-2x8")]
    done = bench("--quick", f"--root={tmp_path}", *subjects, interpreted=True)
    assert done.returncode == 0, done.stderr
    assert "on Triton's interpreter" in done.stdout and "Tiles of our kernels: chosen by hand." in done.stdout
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    rows = {line[0].removeprefix("| "): line[1:] for line in lines if len(line) > 2}
    assert float(rows["ours int8"][0]) > 0 and float(rows["ours int4"][0]) > 0
    assert "sees no CUDA device" in rows["torch-bf16"][-1]
    assert float(rows["cuda-tfmq-w8a8"][0]) > 0 and 0 < float(rows["cuda-tfmq-w8a8"][1]) < 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_and_interpreter_it_says_why_not() -> None:
    done = bench("--quick", interpreted=False)
    assert done.returncode == 1 and "bench gpu: the cuda backend needs an NVIDIA GPU" in done.stderr


def test_rivals_are_known_and_say_why_not() -> None:
    for name in gpu.RIVALS:
        one = rival(name, gpu.RIVALS)
        assert one.name == name and one.note
        if not torch.cuda.is_available() and not name.startswith("cuda"):
            assert one.why_not() == without_gpu()
    assert set(gpu.FULL.rivals) == set(gpu.RIVALS) and set(gpu.QUICK.rivals) < set(gpu.RIVALS)


def test_shapes_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape 'linear-3x4'"):
        gpu_products.ways_of("linear-3x4", CPU)


class Fixed:
    """Answers what the float module answers, or dies."""

    name, note, builds = "fixed", "of the test", False

    def __init__(self, reason: str | None = None, *, dies: bool = False) -> None:
        self.reason, self.dies = reason, dies
        self.answers: list[Answered] = []
        self.closed = 0

    def why_not(self) -> str | None:
        return self.reason

    def build(self, work: Work) -> None:
        raise AssertionError("nothing is to be built")

    def open(self, work: Work) -> Runner:
        if self.dies:
            raise RuntimeError("out of\nmemory")
        return self

    def run(self, call: object) -> torch.Tensor:
        return next(one.answer for one in self.answers if one.call is call) * 1.5

    def close(self) -> None:
        self.closed += 1

    def files(self, work: Work) -> list[Path]:
        return []


def test_models_get_a_row_for_every_rival(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rivals = {"good": Fixed(), "absent": Fixed("not installed"), "dying": Fixed(dies=True)}
    monkeypatch.setattr(gpu, "rival", lambda name, _: rivals[name])
    about = Layer("linear-4x8x8", tmp_path, "linear", (4, 8, 8))
    answers = about.test()
    rivals["good"].answers = answers
    monkeypatch.setattr(Layer, "test", lambda _: answers)
    found = gpu.model(about, replace(gpu.QUICK, rivals=tuple(rivals), rounds=3, root=tmp_path))
    good, absent, dying = found["rows"]
    assert len(good["call_seconds"]) == 3 and good["call_error"] == pytest.approx(0.5)
    assert absent["failed"] == "not installed" and dying["failed"] == "RuntimeError: out of memory"
    assert rivals["good"].closed == 1
    facts = {"device": "x", "machine": {"date": "today"}, "packages": {"torch": "9"}, "rounds": 3, "tiles": "by hand"}
    product = {"shape": "linear-1x1x1", "microseconds": {"torch bfloat16": 2.0, "ours int8": 1.0}, "ours fp8": "no"}
    text = gpu.markdown({**facts, "products": [product], "models": [found]})
    assert "| ours int8 | 1.0 | 2.00 |" in text and "| ours fp8 | - | no |" in text
    assert "did not run: RuntimeError: out of memory" in text


def test_candidates_fit_the_device() -> None:
    for shape in gpu_tune.shapes():
        found = list(gpu_tune.candidates(shape))
        assert 3 <= len(found) <= 120 and len(set(found)) == len(found)
        assert all((one.rows + one.columns) * one.depth * one.stages <= gpu_tune.SHARED for one in found)
        assert shape.m > 16 or all(one.rows == 16 for one in found)


def test_the_fastest_tile_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape, ran = Shape("int8_linear", 64, 64, 64), list[Config]()

    def work_of(_: Shape, __: torch.device) -> Callable[[], object]:
        def work() -> None:
            now = tuning.config("int8_linear", 64, 64, 64)
            if now.columns == 256:
                raise OutOfResources(1, 2, "shared memory")
            ran.append(now)

        return work

    monkeypatch.setattr(gpu_tune, "work_of", work_of)
    configs = [Config(rows=64, columns=wide, depth=64, group=8, warps=4, stages=3) for wide in (64, 128, 256)]
    times = iter([3.0, 2.0])
    entry, refused = gpu_tune.best(shape, configs, CPU, lambda work: next(times))
    assert entry is not None and entry.config == configs[1] and entry.microseconds == 2.0 and refused == 1
    assert ran == configs[:2]
    assert gpu_tune.best(shape, configs[2:], CPU, lambda work: 1.0) == (None, 1)
    monkeypatch.setattr(gpu_tune, "candidates", lambda _: configs)
    path = gpu.tuned_path(tmp_path, CPU)
    table = gpu_tune.tune(path, CPU, [shape])
    assert gpu.tuned(tmp_path, CPU) == table and json.loads(path.read_text(encoding="utf-8"))["measured"] is False
    assert "no room for 1 candidates" in table.note and gpu.tuned(tmp_path / "elsewhere", CPU) is None


def test_times_are_positive() -> None:
    assert gpu_time.seconds(lambda: torch.ones(8).sum()) > 0
    assert gpu_time.microseconds(lambda: torch.ones(8).sum(), 3) > 0
