"""The main job on real parts: `halftone serve`, the built-in model, both profiles, real HTTP; pictures are checked."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from bench.service import service
from halftone import Client
from jobs.job import JobState
from zoo.shapes.checker import faults
from zoo.shapes.world import Relation, Scene, Thing

PROMPT = "a large red circle left of a small blue square on a beige background"
SCENE = Scene("beige", (Thing("red", "circle", "large"), Thing("blue", "square", "small")), Relation.LEFT)
PROFILES = ("float", "w8a8")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with service() as port, Client(f"http://127.0.0.1:{port}", timeout=120) as found:
        yield found


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def psnr(one: bytes, other: bytes) -> float:
    error = np.square(pixels(one).astype(np.float64) - pixels(other)).mean()
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_picture_shows_the_prompt(client: Client, profile: str) -> None:
    wrong = [faults(pixels(client.generate(PROMPT, profile=profile, seed=seed)[0].data), SCENE) for seed in range(10)]
    assert wrong.count([]) >= 8, wrong


@pytest.mark.parametrize("steps", [25, 9])
def test_kept_temporal_features_serve_any_number_of_steps(client: Client, steps: int) -> None:
    """Tables are for 25 steps; the timesteps of 9 are mostly others."""
    fields: dict[str, Any] = {"profile": "tfmq-w4a8", "num_inference_steps": steps}
    made = [client.generate(PROMPT, seed=seed, **fields) for seed in range(5)]
    assert {one.used.backend for one in made} == {"openvino"}
    assert [faults(pixels(one[0].data), SCENE) for one in made].count([]) >= 4


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_seed_alone_gives_the_same_bytes(client: Client, profile: str) -> None:
    one, again = (client.generate(PROMPT, profile=profile, seed=11)[0] for _ in range(2))
    assert one.data == again.data
    assert client.generate(PROMPT, profile=profile, seed=12)[0].data != one.data


@pytest.mark.parametrize("profile", PROFILES)
def test_company_does_not_change_a_picture(client: Client, profile: str) -> None:
    alone = {seed: client.generate(PROMPT, profile=profile, seed=seed)[0].data for seed in range(20, 24)}

    def other(seed: int) -> bytes:
        steps, guidance = 10 + seed % 7, (0.0, 1.0, 3.0, 6.0)[seed % 4]
        fields: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "profile": PROFILES[seed % 2],
        }
        return client.generate("a small green ring", seed=seed, **fields)[0].data

    with ThreadPoolExecutor(12) as pool:
        company = [pool.submit(other, seed) for seed in range(8)]
        together = {seed: pool.submit(client.generate, PROMPT, profile=profile, seed=seed) for seed in alone}
        assert all(len(made.result()) > 100 for made in company)
        for seed, made in together.items():
            assert psnr(made.result()[0].data, alone[seed]) >= 50


def test_profiles_alternate_without_reload(client: Client) -> None:
    loads = []
    for _ in range(3):
        for profile in PROFILES:
            made = client.generate(PROMPT, profile=profile, seed=1)
            assert made.used.profile == profile
            loads.append(made.costs.load_seconds)
    assert max(loads) < 0.2, "both stay resident"


def test_sizes_counts_and_formats_finish_right(client: Client) -> None:
    cases: list[dict[str, Any]] = [
        {"size": "64x64", "n": 3, "output_format": "png"},
        {"size": "96x64", "n": 1, "output_format": "webp"},
        {"size": "128x128", "n": 2, "output_format": "jpeg", "guidance_scale": 1.0},
        {"size": "32x48", "num_inference_steps": 1, "negative_prompt": "a blue square"},
    ]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(case, profile, pool.submit(client.generate, PROMPT, profile=profile, seed=5, **case))
                for case in cases for profile in PROFILES]  # fmt: skip
        for case, profile, job in jobs:
            made = job.result()
            sizes = {Image.open(io.BytesIO(picture.data)).size for picture in made}
            assert sizes == {tuple(int(side) for side in case["size"].split("x"))}
            assert [picture.seed for picture in made] == [5 + i for i in range(case.get("n", 1))]
            assert made.used.profile == profile
            notices = [notice.code for notice in made.notices]
            assert ("untrained_size" in notices) == (case["size"] != "64x64")


def test_an_answer_says_what_was_used_and_what_it_cost(client: Client) -> None:
    made = client.generate("a large furry dragon", profile="w8a8", seed=3, num_inference_steps=7, n=2)
    assert (made.used.backend, made.used.num_inference_steps, made.used.seed) == ("openvino", 7, 3)
    assert made.costs.denoiser_calls == 7
    assert made.costs.denoise_seconds > 0 and made.costs.decode_seconds > 0 and made.costs.peak_bytes > 10**7
    assert [notice.code for notice in made.notices] == ["unknown_words"]
    assert "furry" in made.notices[0].message and "dragon" in made.notices[0].message
    told = json.loads(Image.open(io.BytesIO(made[1].data)).info["halftone"])
    assert told["seed"] == 4 and told["prompt"] == "a large furry dragon"


def test_cancel_frees_the_place_within_two_steps(client: Client) -> None:
    client.generate(PROMPT, seed=1)
    job = client.submit(PROMPT, num_inference_steps=50, n=4, profile="float", seed=1, size="128x128")
    at_cancel = 0
    for event in client.watch(job.id):
        if event.type == "progress" and not at_cancel:
            at_cancel = event.data["step"]
            client.cancel(job.id)
    ended = client.job(job.id)
    assert ended.status is JobState.CANCELED
    assert 0 < at_cancel <= ended.progress.step <= at_cancel + 2
    assert client.generate(PROMPT, seed=1).costs.queue_seconds < 1


def test_a_closed_request_cancels_its_job(client: Client) -> None:
    url = str(client._http.base_url).rstrip("/")
    body = {"prompt": PROMPT, "num_inference_steps": 50, "n": 4, "size": "128x128", "seed": 9}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=0.7)
    deadline = time.monotonic() + 10
    while (newest := client.jobs(limit=1).data[0]).status is not JobState.CANCELED:
        assert time.monotonic() < deadline, newest
        time.sleep(0.05)


def test_a_late_job_steps_within_two_calls(client: Client) -> None:
    client.generate(PROMPT, seed=1)
    long = client.submit(PROMPT, num_inference_steps=50, seed=1, profile="float", size="128x128", n=2)
    steps: list[tuple[str, float]] = []
    with ThreadPoolExecutor(1) as pool:

        def watch_late() -> None:
            late = client.submit(PROMPT, num_inference_steps=5, seed=2, profile="float", priority="normal")
            steps.extend(("late", float(event.id.split("-")[0])) for event in client.watch(late.id)
                         if event.type == "progress")  # fmt: skip

        watching = None
        for event in client.watch(long.id):
            if event.type == "progress":
                steps.append(("long", float(event.id.split("-")[0])))
                if watching is None:
                    watching = pool.submit(watch_late)
        assert watching is not None
        watching.result()
    order = [name for name, _ in sorted(steps, key=lambda step: step[1])]
    late = [index for index, name in enumerate(order) if name == "late"]
    assert order[late[-1] :].count("long") > 5, "the long job was still running when the late one had finished"
    between = [order[a:b].count("long") for a, b in pairwise(late)]
    assert max(between) <= 2, order


def test_metrics_count_what_was_made(client: Client) -> None:
    log = httpx.get(str(client._http.base_url).rstrip("/") + "/metrics").text
    names = {family.name for family in text_string_to_metric_families(log)}
    assert {"halftone_http_requests", "halftone_jobs_submitted", "halftone_queue_depth"} <= names


def test_the_model_loads_in_plain_diffusers() -> None:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    folder = Path(__file__).parents[2] / "zoo" / "models" / "shapes-unet"
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is StableDiffusionPipeline
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 25e6
