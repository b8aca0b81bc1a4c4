"""`halftone serve` as people and init systems use it: ready, mended, stopped in order, refused with a reason."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halftone import Client, RetryPolicy
from halftone.children import Log
from halftone.serve import Plan, base_url, free_port, is_free


def gone(processes: list[tuple[int, str]], seconds: float = 5) -> list[str]:
    """Command lines of those that still run after some seconds."""
    deadline = time.monotonic() + seconds
    left = processes
    while left and time.monotonic() < deadline:
        left = [(pid, line) for pid, line in left if Path(f"/proc/{pid}/cmdline").exists() and runs(pid)]
        time.sleep(0.05)
    return [line for _, line in left]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def child_pid(running: Any, module: str) -> int:
    return next(int(pid) for pid, line in running.processes() if line.rstrip().endswith(f"-m {module}"))


def test_a_whole_life(serve: Callable[..., Any], tmp_path: Path) -> None:
    """Start, greet, a picture, a dead gateway, a dead worker, SIGTERM to the whole group as `make` gets it."""
    with serve(tmp_path) as running:
        running.until_ready()
        running.until_logged(f"is ready at {running.url}")
        running.until_logged("curl -s")
        with Client(running.url, retry=RetryPolicy(retries=8)) as client:
            assert len(client.generate("hello")) == 1
            os.kill(child_pid(running, "service"), signal.SIGKILL)
            running.until_logged("the gateway was ended by SIGKILL; starting it again")
            assert len(client.generate("hello again")) == 1
            os.kill(child_pid(running, "workers"), signal.SIGKILL)
            running.until_logged("the worker was ended by SIGKILL; starting it again")
            running.until_ready()
            assert len(client.generate("hello once more")) == 1
        processes = running.processes()
        assert len(processes) >= 5, "serve, redis, gateway, supervisor, device child"
        os.killpg(running.process.pid, signal.SIGTERM)
        assert running.process.wait(30) == 0
        assert gone(processes) == []
        lines = running.lines()
    assert lines.index("serve   | stopping") < lines.index("serve   | stopped")
    assert "Traceback" not in lines
    assert lines.index("draining") < lines.index("Shutting down"), "the worker ends before the gateway"


def test_a_running_job_finishes_while_stopping(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(tmp_path) as running:
        running.until_ready()
        with Client(running.url) as client:
            job = client.submit("sleep 0.5", num_inference_steps=4)
            next(event for event in client.watch(job.id) if event.type == "started")
        os.killpg(running.process.pid, signal.SIGTERM)
        assert running.process.wait(30) == 0
    with serve(tmp_path) as running:
        running.until_ready()
        with Client(running.url) as client:
            assert client.job(job.id).status == "succeeded", "it survived the restart, finished"


def test_nothing_is_left_when_the_parent_is_killed(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(tmp_path, HALFTONE_DRAIN_SECONDS="1") as running:
        running.until_ready()
        processes = running.processes()
        running.process.kill()
        running.process.wait(10)
        assert len(processes) >= 5
        assert gone(processes, 30) == [], "the worker waits for Redis, which ends too, for as long as its retries last"


def test_ctrl_c_stops(serve: Callable[..., Any], tmp_path: Path) -> None:
    with serve(tmp_path) as running:
        running.until_ready()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(30) == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HALFTONE_LEASE_SECONDS": "soon"}, "HALFTONE_LEASE_SECONDS='soon'"),
        ({"HALFTONE_HOST": "0.0.0.0"}, "HALFTONE_API_KEY_HASHES"),
        ({"HALFTONE_REDIS_URL": "http://x"}, "redis://"),
        ({"HALFTONE_METRICS_PORT": "99999"}, "HALFTONE_METRICS_PORT"),
    ],
)
def test_wrong_settings_are_named(
    serve: Callable[..., Any], tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    with serve(tmp_path, **variables) as running:
        assert running.process.wait(30) == 1
        assert message in running.lines()
        assert "Traceback" not in running.lines()


def test_a_taken_port_is_said_at_once(serve: Callable[..., Any], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with serve(tmp_path, "--port", str(taken.getsockname()[1])) as running:
            assert running.process.wait(30) == 1
            assert "is taken; choose another" in running.lines()


def test_a_data_folder_that_is_none_is_told(serve: Callable[..., Any], tmp_path: Path) -> None:
    """The data folder is a file: nothing can start, and the status and the log say so."""
    (tmp_path / "data").write_text("a file where a folder should be")
    with serve(tmp_path) as running:
        assert running.process.wait(30) == 1
        assert str(tmp_path / "data") in running.lines()
        assert "Traceback" not in running.lines()


def test_the_plan_becomes_variables(tmp_path: Path) -> None:
    plan = Plan(port=1, data=Path("~/x"), models=(tmp_path / "a", tmp_path / "b"))
    assert plan.variables() == {
        "HALFTONE_PORT": "1",
        "HALFTONE_DATA": str(Path.home() / "x"),
        "HALFTONE_MODELS": f"{tmp_path}/a{os.pathsep}{tmp_path}/b",
    }
    assert Plan().variables() == {}


def test_addresses() -> None:
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert base_url("::", 80) == "http://[::1]:80"
    assert base_url("192.168.0.7", 80) == "http://192.168.0.7:80"
    port = free_port("127.0.0.1")
    assert is_free("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not is_free("127.0.0.1", port)


def test_log_lines_carry_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    Log().write("worker", "hello")
    assert capsys.readouterr().err == "worker  | hello\n"
