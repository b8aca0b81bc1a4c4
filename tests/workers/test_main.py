"""`python -m workers` as an operator meets it: it works, says what is wrong, and leaves in order."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from jobs.errors import BadSettings
from jobs.job import Job, JobState
from jobs.queue import JobQueue
from jobs.redis_server import connect
from jobs.request import ImageRequest
from jobs.settings import Settings
from workers.settings import WorkerSettings

COMMAND = (sys.executable, "-m", "workers")


def environment(data: Path, url: str) -> dict[str, str]:
    return os.environ | {
        "HALFTONE_DATA": str(data),
        "REDIS_URL": url,
        "HALFTONE_NAMESPACE": secrets.token_hex(4),
        "HALFTONE_NULL_MODEL": "1",
        "HALFTONE_METRICS_PORT": "0",
    }


async def one_job(variables: dict[str, str]) -> Job:
    settings = Settings(
        data=Path(variables["HALFTONE_DATA"]), redis_url=None, namespace=variables["HALFTONE_NAMESPACE"]
    )
    redis = connect(variables["REDIS_URL"])
    queue = JobQueue(redis, settings)
    request = ImageRequest(
        model="null", profile="float", prompt="p", width=8, height=8, num_inference_steps=1, guidance_scale=0, seed=0
    )
    job = (await queue.submit(request)).job
    deadline = time.monotonic() + 30
    while not job.state.final:
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.02)
        job = await queue.get(job.id)
    await redis.aclose()
    return job


def test_it_works_with_the_real_child_serves_metrics_and_leaves_on_sigterm(redis_url: str, tmp_path: Path) -> None:
    variables = environment(tmp_path, redis_url)
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(COMMAND, env=variables, stderr=output) as worker:
        assert asyncio.run(one_job(variables)).state is JobState.SUCCEEDED
        address = re.search(r"http://[0-9.:]+/metrics", log.read_text(encoding="utf-8"))
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=5) as answer:
            text = answer.read().decode()
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    assert time.monotonic() - began < 10
    done = 'halftone_jobs_completed_total{model="null",profile="float",status="succeeded"} 1.0'
    assert done in text
    assert 'halftone_process_resident_memory_bytes{process="child"}' in text
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    for variables, told in (
        ({"HALFTONE_MAX_RUNNING": "many"}, "HALFTONE_MAX_RUNNING"),
        ({"HALFTONE_LANES": "image,sound"}, "HALFTONE_LANES"),
        ({"REDIS_URL": ""}, "no Redis: set REDIS_URL"),
        ({"REDIS_URL": "redis://localhost", "HALFTONE_METRICS_HOST": "192.0.2.1"}, "HALFTONE_METRICS_PORT"),
    ):
        ran = subprocess.run(
            COMMAND,
            env=environment(tmp_path, "") | variables,
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
        assert ran.returncode == 2, ran.stderr
        assert told in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("value", "lanes"), [("video", ("video",)), ("image, video", ("image", "video")), ('["image"]', ("image",))]
)
def test_lanes_come_with_commas_or_as_json(
    value: str, lanes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFTONE_LANES", value)
    assert WorkerSettings(data=tmp_path).lanes == lanes


@pytest.mark.parametrize("value", ["", "sound", '["image"', "image;video"])
def test_wrong_lanes_are_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_LANES", value)
    with pytest.raises(BadSettings, match="HALFTONE_LANES"):
        WorkerSettings.load()
