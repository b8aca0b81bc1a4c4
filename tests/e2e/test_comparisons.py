"""Comparisons of the built-in model through the whole service: measured, judged, shown, and no users' job waits."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from bench.service import service
from halftone import Client
from jobs.quality import Report

PROMPTS = ["a large red circle left of a small blue square on a beige background", "a small green ring"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with service() as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=240) as found:
        yield found


@pytest.mark.timeout(600)
def test_profiles_are_held_against_float(client: Client, url: str) -> None:
    found = client.compare(
        PROMPTS,
        model="shapes-unet",
        profiles=["w8a8", "tfmq-w8a8-cfg"],
        seeds=[4],
        num_inference_steps=12,
        thresholds={"min_psnr_db": 20, "min_temporal_cosine": 0.9},
    )
    assert found.report is not None
    report = Report.model_validate(found.report)
    assert [one.verdict for one in report.profiles] == ["passed", "passed"], [one.reasons for one in report.profiles]
    for one in report.profiles:
        assert one.psnr_db is not None and one.psnr_db > 20 and 0.8 < one.ssim < one.ms_ssim <= 1
        assert len(one.trajectory) == 12 and one.ms_ssim_scales == 3
        assert one.temporal_cosine_worst is not None and one.temporal_cosine_worst > 0.9
        assert one.prompt_accuracy is not None and one.float_prompt_accuracy is not None
        assert one.spent.weights_bytes > 0
    drawn = client.generate(PROMPTS[0], model="shapes-unet", seed=4, num_inference_steps=12)
    mine = np.asarray(Image.open(io.BytesIO(drawn[0].data)), dtype=int)
    file = report.reference.pictures[0].file
    assert np.abs(np.asarray(Image.open(io.BytesIO(client.file(file))), dtype=int) - mine).max() <= 1
    page = client.report_page(found.id)
    assert page.count("<img ") == 2 * (1 + 2 * 2) and "<script" not in page
    assert client.reports(limit=1).data[0].id == found.id
    metrics = httpx.get(f"{url}/metrics").text
    assert 'kind="compare"' in metrics


@pytest.mark.timeout(600)
def test_a_users_job_does_not_wait_for_a_comparison(client: Client, url: str) -> None:
    body = {"prompt": PROMPTS[0], "model": "shapes-unet", "profiles": ["w8a8"], "seeds": list(range(16))}
    job = httpx.post(f"{url}/v1/quality/compare", json=body, headers={"Prefer": "respond-async"}).json()
    deadline = time.monotonic() + 120
    while client.job(job["id"]).progress.step == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.generate(PROMPTS[1], model="shapes-unet", profile="w8a8", seed=1, num_inference_steps=4)
    assert not client.job(job["id"]).status.final, "it was still comparing"
    client.cancel(job["id"])
    assert client.wait(job["id"], timeout=60).status == "canceled"
