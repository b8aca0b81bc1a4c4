"""One rival in a process of its own: `python -m bench.rivals.child`; orders and answers are lines of JSON.

Orders come on standard input; answers go to what was standard output, which libraries then no longer reach. Tensors lie
in files. Must not know what other rivals do or how numbers are judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.calls import Answered
from bench.rivals import Rival, Runner, rival
from bench.rivals.ours import Ours
from bench.subjects import UNSEEN_SEED, Picture, Subject, subject
from pipelines.drawing import draw_batch
from pipelines.load import quiet
from pipelines.quantized import QuantizedDenoiser
from workers.memory import peak_bytes, rss_bytes

Found = dict[str, Any]


class Child:
    """A rival with its subject."""

    def __init__(self, chosen: Rival, about: Subject, threads: int) -> None:
        self._rival, self._about = chosen, about
        self._work = about.work(chosen.name, threads)
        self._runner: Runner | None = None
        self._test: list[Answered] = []
        self.orders: dict[str, Callable[..., Found]] = {
            "build": self.build, "open": self.open, "run": self.run, "draw": self.draw, "weigh": self.weigh,
            "forget": self.forget,
        }  # fmt: skip

    def build(self) -> Found:
        """Makes what opening needs, where it is missing."""
        started = time.perf_counter()
        self._rival.build(self._work)
        return {"seconds": time.perf_counter() - started}

    def open(self) -> Found:
        """Opens the rival; code may be compiled later."""
        before, started = rss_bytes(), time.perf_counter()
        self._runner = self._rival.open(self._work)
        return {"seconds": time.perf_counter() - started, "rss_before": before}

    def run(self, call: int, rows: int = 2, keep: str = "") -> Found:
        """Answers one of the subject's test calls, or its last `rows` rows; the answer is kept in a file if asked."""
        if not self._test:
            self._test = self._about.test()
        asked = self._test[call].call
        if rows < asked.count:
            asked = asked.take(torch.arange(asked.count - rows, asked.count))
        elif rows > asked.count:
            asked = asked.padded(rows)
        runner = self._opened()
        started = time.perf_counter()
        answer = runner.run(asked)
        seconds = time.perf_counter() - started
        if keep:
            save_file({"answer": answer.contiguous()}, keep)
        return {"seconds": seconds}

    def draw(self, planned: bool = False, steps: int = 0, keep: str = "") -> Found:
        """Draws the unseen picture whole; its final latents are kept in a file if asked."""
        if not isinstance(self._about, Picture):
            raise TypeError(f"{self._about.name} is no pipeline: it draws no pictures")
        components = self._about.components
        plan = self._rival.plan(self._work) if planned and isinstance(self._rival, Ours) else None
        if planned and plan is None:
            raise ValueError(f"{self._rival.name} has no guidance plan")
        runner = _Counting(self._opened())
        denoiser = QuantizedDenoiser(self._rival.name, "bench", type(components.skeleton), runner, plan)
        defaults = self._about.defaults
        if steps:
            defaults = defaults.model_copy(update={"num_inference_steps": steps})
        started = time.perf_counter()
        drawn = draw_batch(components, denoiser, [self._about.unseen], [UNSEEN_SEED], defaults)
        seconds = time.perf_counter() - started
        if keep:
            save_file({"latents": drawn.latents[-1].contiguous()}, keep)
        return {"seconds": seconds, "denoiser_seconds": runner.seconds, "rows": runner.rows}

    def weigh(self) -> Found:
        """Memory of this process as the system counts it, and the rival's files."""
        files = self._rival.files(self._work)
        fallbacks = getattr(self._runner, "fallbacks", 0)
        size = sum(path.stat().st_size for path in files)
        now = rss_bytes()  # before the peak, which may still grow by a page
        return {"peak": peak_bytes(), "rss": now, "disk": size, "fallbacks": fallbacks, "read": _read_bytes()}

    def forget(self) -> Found:
        """Has the system drop its cached copies of all models' and rivals' files."""
        paths = [path for path in self._about.root.rglob("*") if path.is_file()]
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return {"files": len(paths)}

    def _opened(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the rival was not opened")
        return self._runner


class _Counting:
    """Passes calls on, and adds up rows and seconds."""

    fallbacks = 0
    weights_bytes = 0

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.rows, self.seconds = 0, 0.0

    def run(self, call: Any) -> torch.Tensor:
        started = time.perf_counter()
        output = self._runner.run(call)
        self.seconds += time.perf_counter() - started
        self.rows += call.count
        return output

    def close(self) -> None:
        """The runner outlives it."""


def _read_bytes() -> int:
    """Bytes that this process had fetched from storage."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def main() -> None:
    """Serves orders until standard input ends."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("rival")
    options.add_argument("subject")
    options.add_argument("--root", type=Path, required=True)
    options.add_argument("--threads", type=int, required=True)
    chosen = options.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    quiet()
    torch.set_num_threads(chosen.threads)
    child = Child(rival(chosen.rival), subject(chosen.subject, chosen.root), chosen.threads)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = child.orders[order.pop("do")](**order)
        except Exception as error:  # noqa: BLE001  (whatever a rival dies of is told as its reason)
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
