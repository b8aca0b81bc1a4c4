"""Starts a rival's process and talks to it: orders in, answers out, and why it died if it did. Must not know rivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TAIL = 300
"""Characters of a dead process's log that are told."""


class RivalFailed(RuntimeError):
    """A rival could not do what it was asked; the message is the reason, in one line."""


class Process:
    """A rival's process. Use as a context; it ends with it."""

    def __init__(self, rival: str, subject: str, root: Path, threads: int) -> None:
        self.rival = rival
        self._log = root / "logs" / f"{subject}-{rival}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.rivals.child", rival, subject]
        command += ["--root", str(root), "--threads", str(threads)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **_settings(threads)},
                cwd=Path(__file__).parents[2],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Has an order done, and waits for it.

        Raises:
            RivalFailed: it was not done.
        """
        requests, answers = self._process.stdin, self._process.stdout
        if requests is None or answers is None:
            raise RivalFailed("its process has no pipes")
        try:
            requests.write(json.dumps({"do": order, **arguments}).encode() + b"\n")
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RivalFailed(self._death(order))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RivalFailed(f"{order}: {' '.join(answer['error'].split())[:TAIL]}")
        return answer

    def kill(self) -> None:
        """Ends the process at once; what it is asked next fails."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # it died before it read all
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def _death(self, order: str) -> str:
        status = self._process.wait()
        said = " ".join(self._log.read_text(encoding="utf-8", errors="replace").split())[-TAIL:]
        return f"{order}: its process ended with status {status}: {said}"


def _settings(threads: int) -> dict[str, str]:
    """What every rival's process runs under: so many threads, none of which waits spinning beside others' work."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**quiet, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"}
