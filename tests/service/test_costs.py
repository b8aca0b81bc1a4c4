"""What work is expected to cost: fits over sizes where no one rate holds, by model, profile and kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.job import Costs
from jobs.request import ImageRequest, VideoRequest
from service.costs import CostBook, power_law

Video = Callable[..., VideoRequest]
Picture = Callable[..., ImageRequest]


def seconds(pixels: float) -> float:
    """A call of a made-up transformer: what every call costs, the layers, attention."""
    return 0.01 + 2e-6 * pixels + 4e-12 * pixels**2


def run(book: CostBook, request: VideoRequest, slower: float = 1.0) -> None:
    pixels = request.width * request.height * request.num_frames
    rest = 1e-6 * pixels
    costs = Costs(denoise_seconds=slower * seconds(pixels) * request.calls, decode_seconds=rest, encode_seconds=rest)
    book.observe(request, costs)


def test_nothing_is_known_of_what_never_ran(video_request: Video, image_request: Picture) -> None:
    book = CostBook()
    assert book.estimate(video_request()) is None
    run(book, video_request())
    assert book.estimate(video_request(num_inference_steps=8)) is not None
    assert book.estimate(video_request(profile="w8a8")) is None
    assert book.estimate(video_request(model="other")) is None
    assert book.estimate(image_request(model="null-video")) is None
    assert book.estimate(video_request(num_frames=5 * 9)) is None, "nine times as large as anything seen"


def test_one_job_gives_one_rate(video_request: Video) -> None:
    book = CostBook()
    book.observe(video_request(), Costs(denoise_seconds=8.0, decode_seconds=1.0, text_encode_seconds=1.0))
    assert book.estimate(video_request()) == pytest.approx(10)
    assert book.estimate(video_request(num_inference_steps=8)) == pytest.approx(18), "decoding is done once"
    assert book.estimate(video_request(guidance_scale=4.0)) == pytest.approx(18), "two branches"
    assert book.estimate(video_request(num_frames=10)) == pytest.approx(20)
    assert book.estimate(video_request(), left=0.25) == pytest.approx(4), "decoding and encoding are still to come"


def test_sizes_are_fitted_where_no_rate_holds(video_request: Video) -> None:
    book = CostBook()
    for frames, side in ((1, 32), (5, 64), (17, 64), (33, 128)):
        run(book, video_request(num_frames=frames, width=side, height=side, num_inference_steps=10))
    for frames, side in ((1, 40), (9, 64), (9, 128), (25, 128), (45, 128), (61, 128)):
        wanted = video_request(num_frames=frames, width=side, height=side, num_inference_steps=20)
        pixels = frames * side**2
        truth = 20 * seconds(pixels) + 2e-6 * pixels
        assert book.estimate(wanted) == pytest.approx(truth, rel=0.25), (frames, side)
    by_one_rate = seconds(33 * 128**2) / 33 / 128**2 * 32**2
    assert by_one_rate < 0.5 * seconds(32**2), "so small jobs need the fit"


def test_jobs_in_company_and_first_calls_do_not_count(video_request: Video) -> None:
    book = CostBook()
    for slower in (30.0, 1.0, 4.0, 2.5):
        run(book, video_request(), slower)
    pixels = 64 * 64 * 5
    assert book.estimate(video_request()) == pytest.approx(4 * seconds(pixels) + 2e-6 * pixels)
    for _ in range(8):
        run(book, video_request(), 3.0)
    assert book.estimate(video_request()) == pytest.approx(12 * seconds(pixels) + 2e-6 * pixels), (
        "old jobs are forgotten"
    )


def test_a_larger_size_is_never_cheaper() -> None:
    points = [(100.0, 9.0), (200.0, 2.0), (400.0, 4.0)]
    assert power_law(points, 100) == pytest.approx(2)
    assert power_law(points, 50) == pytest.approx(2)
    assert power_law(points, 800) == pytest.approx(8)
    assert power_law([(100.0, 1.0), (200.0, 100.0)], 400) == pytest.approx(400), "at most the square"
    assert power_law([(1.0, 0.0), (2.0, 0.0)], 4) == pytest.approx(0, abs=1e-6)
