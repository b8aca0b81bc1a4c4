"""The sweeper: files of attempts that never became a result go, results and running jobs' files stay."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.files import ResultStore
from jobs.job import Costs, JobResult, ResultFile, Used, new_job_id
from jobs.queue import JobQueue
from jobs.request import ImageRequest
from workers.sweep import Sweeper


def everything(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


@pytest.mark.anyio
async def test_orphans_are_collected_and_results_kept(
    tmp_path: Path, queue: JobQueue, image_request: Callable[..., ImageRequest]
) -> None:
    store = ResultStore(tmp_path / "results", ttl=1000)
    for seed in range(3):
        await queue.submit(image_request(seed=seed))
    done, running, canceled = await queue.take("w", 3)
    kept, _ = store.write(done.job.id, done.token, 0, b"x", "png")
    for claim in (done, running, canceled):
        store.write(claim.job.id, secrets.token_hex(8), 0, b"fenced", "png")
    store.write(new_job_id(), "f" * 16, 0, b"of no job", "png")
    file = ResultFile(id=kept, mime="image/png", size_bytes=1, sha256="0", width=64, height=64, seed=1)
    used = Used(
        model="null",
        profile="float",
        backend="null",
        seed=1,
        num_inference_steps=4,
        guidance_scale=1.0,
        width=64,
        height=64,
        scheduler="none",
    )
    await queue.succeed(done, JobResult(files=(file,), used=used, costs=Costs()))
    await queue.confirm_cancel(canceled)
    written = len(everything(tmp_path))
    await Sweeper(queue, store, grace=3600).sweep()
    assert len(everything(tmp_path)) == written, "too young to judge"
    await Sweeper(queue, store, grace=-10).sweep()
    assert len(everything(tmp_path)) == written - 3
    left = everything(tmp_path)
    assert {path.name.split("-")[0] for path in left} == {done.job.id, running.job.id}
    assert store.path_of(kept) in left
