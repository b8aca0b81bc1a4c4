"""What requests of every kind are, how their union is told apart, and that what older versions stored is still read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from jobs.job import ResultFile
from jobs.profile import Defaults, Limits, ModelCard
from jobs.queue import JobQueue
from jobs.records import job_from_hash
from jobs.request import ImageRequest, VideoParameters, VideoRequest, read_request

pytestmark = pytest.mark.anyio

STORED_BEFORE_VIDEO = (
    '{"version":1,"kind":"image","model":"shapes-unet","profile":"w8a8","prompt":"a red circle","negative_prompt":"",'
    '"width":64,"height":64,"num_inference_steps":25,"guidance_scale":4.0,"seed":7,"n":2,"output_format":"png",'
    '"output_compression":null,"previews":0,"priority":"normal","notices":[{"code":"untrained_size","message":"m"}]}'
)
FILE_STORED_BEFORE_VIDEO = (
    '{"id":"f.png","mime":"image/png","size_bytes":1,"sha256":"0","width":64,"height":64,"seed":7}'
)


def test_a_request_stored_before_there_was_video_is_read() -> None:
    fields = {"owner": "", "request": STORED_BEFORE_VIDEO, "state": "queued", "created_at": "1.5"}
    request = job_from_hash("0" * 32, fields).request
    assert isinstance(request, ImageRequest)
    assert (request.n, request.seeds, request.work) == (2, [7, 8], 64 * 64 * 25 * 2 * 2)


def test_a_file_stored_before_there_was_video_is_a_picture() -> None:
    file = ResultFile.model_validate_json(FILE_STORED_BEFORE_VIDEO)
    assert (file.variant, file.num_frames, file.fps, file.duration_seconds) == ("picture", None, None, None)


def test_a_union_is_told_apart_by_kind(video_request: Callable[..., VideoRequest]) -> None:
    wanted = video_request(guidance_scale=5.0, num_frames=9)
    assert read_request(wanted.model_dump_json()) == wanted
    assert wanted.work == 64 * 64 * 4 * 2 * 9
    assert wanted.seeds == [1]
    with pytest.raises(ValidationError, match="sound"):
        read_request(STORED_BEFORE_VIDEO.replace('"kind":"image"', '"kind":"sound"'))


async def test_a_video_goes_through_the_queue(queue: JobQueue, video_request: Callable[..., VideoRequest]) -> None:
    wanted = video_request(output_format="webm")
    submitted = await queue.submit(wanted)
    [claim] = await queue.take("w", room=1)
    assert claim.job.request == wanted
    assert (await queue.get(submitted.job.id)).request == wanted


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": 61}, {"num_frames": 0}, {"output_format": "png"}, {"n": 2}])
def test_parameters_of_a_video_are_bounded(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VideoParameters.model_validate({"prompt": "a red circle moves left", **wrong})


DEFAULTS = Defaults(width=64, height=64, num_inference_steps=4, guidance_scale=1.0)
LIMITS = Limits(min_side=8, max_side=64, multiple_of=8, max_pixels=4096)


def test_a_card_has_frames_exactly_when_it_is_of_video() -> None:
    moving = DEFAULTS.model_copy(update={"num_frames": 17, "fps": 8})
    frames = LIMITS.model_copy(update={"max_frames": 33, "frames_multiple_of": 4})
    card = ModelCard(id="m", kind="video", pipeline="WanPipeline", defaults=moving, limits=frames)
    assert card.kind == "video"
    with pytest.raises(ValidationError, match=r"needs defaults\.num_frames"):
        ModelCard(id="m", kind="video", pipeline="WanPipeline", defaults=DEFAULTS, limits=frames)
    with pytest.raises(ValidationError, match=r"has no limits\.max_frames"):
        ModelCard(id="m", pipeline="StableDiffusionPipeline", defaults=DEFAULTS, limits=frames)
