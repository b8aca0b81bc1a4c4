"""Jobs from request to stored files, alone and in company, on a real engine with tiny models."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.errors import HalftoneError
from jobs.job import new_job_id
from jobs.request import ImageRequest
from pipelines.denoiser import DenoiserCall
from pipelines.media import read_facts
from pipelines.session import NumericalError
from tests.workers.kit import TOKEN, Kit, Notes, decibels, request, tiny_settings
from workers.seams import preview_steps
from workers.task import JobCanceledSignal, Task


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.rows.GAIN", 0.0)  # batch whether or not it pays for models so small
        made = Kit(tiny_settings(tmp_path_factory.mktemp("data"), ("stable-diffusion", "flux")))
        yield made
        made.close()


def test_a_job_tells_what_it_used_and_cost(kit: Kit) -> None:
    notes = Notes()
    result = kit.run(request(n=2, seed=2**32 - 1), notes=notes)
    assert [file.seed for file in result.files] == [2**32 - 1, 0]
    assert (result.used.backend, result.used.scheduler) == ("torch", "DDIMScheduler")
    assert notes.steps == [(step, 6) for step in range(1, 7)]
    assert set(notes.stages) == {"load", "text_encode", "denoise", "vae_decode", "encode", "store"}
    costs = result.costs
    assert costs.denoiser_calls == 6
    assert min(costs.text_encode_seconds, costs.denoise_seconds, costs.decode_seconds, costs.encode_seconds) > 0
    assert costs.peak_bytes > 50 * 2**20
    facts = read_facts(kit.files(result)[1])
    assert facts is not None
    assert (facts["prompt"], facts["seed"], facts["profile"]) == ("a red box", 0, "float")
    one, other = kit.pictures(result)
    assert one.shape == (32, 32, 3)
    assert decibels(one, other) < 30, "two seeds make two pictures"


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_the_same_seed_alone_gives_the_same_bytes(kit: Kit, output_format: str) -> None:
    wanted = request(output_format=output_format, seed=11)
    first = kit.run(wanted)
    assert kit.files(first) == kit.files(kit.run(wanted))
    assert first.files[0].mime == f"image/{output_format}"


def test_a_picture_does_not_depend_on_its_company(kit: Kit) -> None:
    mixed: list[ImageRequest] = [
        request(seed=1, num_inference_steps=8),
        request(seed=2, num_inference_steps=5, guidance_scale=7.5),
        request(seed=3, num_inference_steps=12, guidance_scale=1.0),
        request(seed=4, width=48, negative_prompt="blue"),
        request(seed=5, n=3, num_inference_steps=7),
        request("flux", seed=6, guidance_scale=3.0),
        request("flux", seed=7, guidance_scale=5.0, num_inference_steps=4),
        request(seed=8, priority="low", previews=2),
    ]
    alone = [kit.run(one) for one in mixed]
    assert all(batch.jobs == 1 for batch in kit.batches)
    before = len(kit.batches)
    together = kit.run_together(mixed)
    assert max(batch.jobs for batch in kit.batches[before:]) >= 3
    for one, other in zip(alone, together, strict=True):
        for picture, again in zip(kit.pictures(one), kit.pictures(other), strict=True):
            assert decibels(picture, again) >= 50


def test_cancel_stops_a_job_within_two_steps_and_keeps_no_file(kit: Kit) -> None:
    task, notes = Task(new_job_id(), TOKEN), Notes()
    outcome: list[Any] = []

    def job() -> None:
        try:
            outcome.append(kit.run(request(num_inference_steps=150), task, notes))
        except JobCanceledSignal as signal:
            outcome.append(signal)

    thread = threading.Thread(target=job)
    thread.start()
    assert notes.first_step.wait(30)
    steps = len(notes.steps)
    task.cancel()
    thread.join(30)
    assert isinstance(outcome[0], JobCanceledSignal)
    assert len(notes.steps) <= steps + 2
    assert list(kit.store_files(task.job_id)) == []
    assert kit.run(request()).files, "its place is free again"


def test_a_job_canceled_after_its_last_step_is_not_decoded(kit: Kit) -> None:
    class CancelsLast(Notes):
        def stepped(self, step: int, total: int) -> None:
            super().stepped(step, total)
            if step == total:
                task.cancel()

    task, notes = Task(new_job_id(), TOKEN), CancelsLast()
    with pytest.raises(JobCanceledSignal):
        kit.run(request(), task, notes)
    assert "vae_decode" not in notes.stages


def test_previews_come_on_the_way(kit: Kit) -> None:
    notes = Notes()
    kit.run(request(previews=3, num_inference_steps=8, n=2), notes=notes)
    assert [(index, mime) for index, mime, _ in notes.previews] == [(i, "image/webp") for i in range(3)]
    assert all(base64.b64decode(b64)[:4] == b"RIFF" for _, _, b64 in notes.previews)
    assert preview_steps(3, 8) == [2, 4, 6]
    assert preview_steps(3, 2) == [1]
    assert preview_steps(3, 1) == preview_steps(0, 8) == []


def test_a_prompt_longer_than_the_model_reads_is_noticed(kit: Kit) -> None:
    result = kit.run(request(prompt="abcdefghijklmnopqrstuvwxyz"))
    assert [notice.code for notice in result.notices] == ["prompt_truncated"]
    assert "28 tokens" in result.notices[0].message
    assert kit.run(request(prompt="abc")).notices == ()


def test_numbers_gone_wrong_fail_the_job_and_its_neighbours_live(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.denoiser import TorchDenoiser

    run = TorchDenoiser.run

    def poisoned(self: TorchDenoiser, call: DenoiserCall) -> Tensor:
        output = run(self, call)
        wrong = (call.total_steps == 9).reshape(-1, *[1] * (output.ndim - 1))
        return torch.where(wrong, torch.full_like(output, float("inf")), output)

    expected = kit.run(request(seed=3))
    monkeypatch.setattr(TorchDenoiser, "run", poisoned)
    outcome: list[Any] = []

    def job() -> None:
        try:
            kit.run(request(num_inference_steps=9))
        except NumericalError as error:
            outcome.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    result = kit.run(request(seed=3))
    thread.join()
    assert outcome[0].code == "numerical_error"
    assert decibels(kit.pictures(expected)[0], kit.pictures(result)[0]) >= 50


def test_what_a_model_cannot_do_is_said(kit: Kit) -> None:
    with pytest.raises(HalftoneError, match="takes no negative prompt"):
        kit.run(request("flux", negative_prompt="blue"))
