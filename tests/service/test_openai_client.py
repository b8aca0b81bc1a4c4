"""The official `openai` client works against the gateway: sync, async, streamed, with our fields, and its errors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_generate_with_our_fields(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="tiny",
        prompt="a red circle",
        n=2,
        size="auto",
        quality="auto",
        user="somebody",
        response_format="b64_json",
        extra_body={"profile": "w8a8", "seed": 5, "num_inference_steps": 3, "guidance_scale": 2, "priority": "high"},
    )
    assert answer.data is not None
    pictures = [base64.b64decode(picture.b64_json or "") for picture in answer.data]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert answer.output_format == "png"
    assert answer.to_dict()["halftone"]["used"]["seed"] == 5  # type: ignore[index]


def test_default_is_a_link(client: openai.OpenAI, served: Served) -> None:
    answer = client.images.generate(prompt="a red circle")
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(f"{served.url}/v1/files/")
    assert served.client.get(url).status_code == 200


def test_stream(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a red circle", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == 0
    assert last.size == "16x16"
    assert base64.b64decode(last.b64_json).startswith(b"\x89PNG")


def test_async_client(served: Served) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
            answers = await asyncio.gather(*(client.images.generate(prompt="a blue circle") for _ in range(4)))
            assert all(answer.data and answer.data[0].url for answer in answers)
            stream = await client.images.generate(prompt="a red circle", stream=True)
            return [event.type async for event in stream]

    assert asyncio.run(run()) == ["image_generation.completed"]


def test_errors_arrive_as_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"known models: .*tiny") as unknown:
        client.images.generate(model="gpt-image-9", prompt="a")
    assert unknown.value.code == "unknown_model"
    assert unknown.value.param == "model"
    with pytest.raises(openai.UnprocessableEntityError, match="choose quality by it or by `profile`") as quality:
        client.images.generate(prompt="a", quality="hd")
    assert quality.value.param == "quality"
    with pytest.raises(openai.InternalServerError, match="smaller picture"):
        client.images.generate(prompt="fail a")
    with pytest.raises(openai.APIError, match="smaller picture"):
        list(client.images.generate(prompt="fail a", stream=True))


def test_models(client: openai.OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").owned_by == "halftone"


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_videos(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(
        prompt="a red circle moves left",
        model="moving",
        seconds="2",  # type: ignore[arg-type]
        poll_interval_ms=10,
        extra_body={"seed": 5, "fps": 4, "profile": "float"},
    )
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "2.25", "16x16")
    assert video.to_dict()["seed"] == 5
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert client.videos.download_content(video.id, variant="thumbnail").read()[:4] == b"RIFF"
    assert video.id in [other.id for other in client.videos.list(limit=1)]
    assert client.videos.retrieve(video.id).model == "moving"
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.UnprocessableEntityError, match="files are not taken"):
        client.videos.create(prompt="a red circle", input_reference=("a.png", b"png", "image/png"))
    with pytest.raises(openai.NotFoundError, match="known models"):
        client.videos.create(prompt="a red circle", model="sora-2")
