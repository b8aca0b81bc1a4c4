"""Pictures in memory: how they are saved, which format a file name means, what a job that failed raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from halftone.images import Images, Picture, finished, format_of
from halftone.views import JobView
from jobs.errors import InvalidRequest, JobCanceled, JobFailed
from jobs.job import Costs, ResultFile, Used

USED = Used(
    model="m",
    profile="float",
    backend="torch",
    seed=7,
    num_inference_steps=4,
    guidance_scale=2,
    width=8,
    height=8,
    scheduler="S",
)


def images(count: int) -> Images:
    files = [
        ResultFile(id=f"f{i}", mime="image/png", size_bytes=1, sha256="0" * 64, width=8, height=8, seed=7 + i)
        for i in range(count)
    ]
    return Images("0" * 32, tuple(Picture(bytes([file.seed]), file) for file in files), USED, Costs())


def job(status: str, **facts: object) -> JobView:
    fields = {"id": "0" * 32, "status": status, "model": "m", "profile": "float", "created_at": 0.0, **facts}
    return JobView.model_validate(fields)


def test_one_picture_is_saved_by_its_name(tmp_path: Path) -> None:
    assert images(1).save(tmp_path / "a.png") == [tmp_path / "a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"\x07"


def test_several_pictures_are_numbered(tmp_path: Path) -> None:
    paths = images(3).save(tmp_path / "a.png")
    assert [path.name for path in paths] == ["a-0.png", "a-1.png", "a-2.png"]
    assert [path.read_bytes() for path in paths] == [b"\x07", b"\x08", b"\x09"]


def test_images_are_a_sequence() -> None:
    assert [picture.seed for picture in images(2)] == [7, 8]
    assert images(2)[1].seed == 8


def test_the_suffix_says_the_format() -> None:
    assert format_of(Path("a.JPG"), None) == "jpeg"
    assert format_of(Path("a.webp"), "webp") == "webp"
    assert format_of(None, None) == "png"
    assert format_of(None, "jpeg") == "jpeg"


def test_a_suffix_that_contradicts_the_format_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="named as png"):
        format_of(Path("a.png"), "webp")
    with pytest.raises(InvalidRequest, match="must end in"):
        format_of(Path("a.bmp"), None)


def test_a_failed_job_raises_its_own_code() -> None:
    with pytest.raises(JobFailed, match="too big") as caught:
        finished(job("failed", error={"code": "out_of_memory", "message": "too big"}))
    assert caught.value.code == "out_of_memory"


def test_a_canceled_job_raises() -> None:
    with pytest.raises(JobCanceled):
        finished(job("canceled"))


def test_answers_of_a_newer_gateway_are_understood() -> None:
    assert job("queued", invented_later=True).status == "queued"
