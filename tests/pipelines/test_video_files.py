"""Every format of video holds the frames it was given, at their pace, with what made them; and stops when asked to."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.request import VideoFormat
from jobs.video_formats import unfit
from pipelines.media import read_facts
from pipelines.stills import spritesheet, thumbnail
from pipelines.video_files import Film, write_video

FORMATS = get_args(VideoFormat)
FACTS = {"prompt": "ein roter Würfel \u0000 " * 40, "seed": 7, "scale": 3.5}


def moving(frames: int = 13, width: int = 96, height: int = 64) -> Tensor:
    """A red square that moves right over beige: [F, 3, H, W]."""
    video = torch.zeros(frames, 3, height, width) + torch.tensor([0.8, 0.7, 0.6])[:, None, None]
    for number in range(frames):
        video[number, :, 10:30, 5 + 4 * number : 25 + 4 * number] = torch.tensor([0.85, 0.1, 0.1])[:, None, None]
    return video


def levels(video: Tensor) -> NDArray[np.uint8]:
    """[F, H, W, 3] as files hold it."""
    return (video.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def written(path: Path, film: Film, output_format: VideoFormat, quality: int | None = None) -> Path:
    write_video(path, film, output_format, quality, lambda: None)
    return path


def decoded(path: Path) -> NDArray[np.uint8]:
    """All frames [F, H, W, 3] by FFmpeg, or by Pillow where FFmpeg reads none (animated WebP), or of the archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    if path.read_bytes()[:4] == b"RIFF":
        with Image.open(path) as image:
            frames = []
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                frames.append(np.asarray(image.convert("RGB")))
            return np.stack(frames)
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def decibels(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def facts_in(path: Path, output_format: VideoFormat) -> Any:
    if output_format == "frames":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("facts.json"))["halftone"]
    if output_format == "webp":
        return read_facts(path.read_bytes())
    with av.open(str(path)) as file:
        told = {key.lower(): value for key, value in file.metadata.items()}
    return json.loads(told["comment"])["halftone"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_file_holds_frames_pace_and_facts(output_format: VideoFormat, tmp_path: Path) -> None:
    video = moving()
    film = Film(video, 12, FACTS)
    path = written(tmp_path / "one", film, output_format)
    frames = decoded(path)
    assert frames.shape == (13, 64, 96, 3)
    least = {"mp4": 32.0, "webm": 32.0, "webp": 32.0, "gif": 60.0, "frames": float("inf")}
    assert decibels(frames, levels(video)) >= least[output_format]
    assert facts_in(path, output_format) == FACTS
    again = written(tmp_path / "other", film, output_format)
    assert again.read_bytes() == path.read_bytes(), "nothing of the clock, the machine or chance is inside"


@pytest.mark.parametrize(("output_format", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_players_are_told_what_they_need(output_format: VideoFormat, codec: str, tmp_path: Path) -> None:
    path = written(tmp_path / "one", Film(moving(17), 8, FACTS), output_format)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
        assert (stream.width, stream.height) == (96, 64) and stream.average_rate == Fraction(8)
        assert file.duration is not None and abs(file.duration / av.time_base - 17 / 8) < 0.002
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
    data = path.read_bytes()
    if output_format == "mp4":
        assert 0 < data.find(b"moov") < data.find(b"mdat"), "players begin before all has come"


@pytest.mark.parametrize(("output_format", "unit"), [("gif", 10), ("webp", 1)])
@pytest.mark.parametrize("fps", [7, 30, 50])
def test_time_does_not_drift(output_format: VideoFormat, unit: int, fps: int, tmp_path: Path) -> None:
    """Both formats round each frame's time to whole units of milliseconds; the sum must not."""
    path = written(tmp_path / "one", Film(moving(13), fps, {}), output_format)
    times = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            times.append(image.info["duration"])
        assert image.info.get("loop") == 0, "for ever"
    until_last = sum(times[:-1])
    assert abs(until_last - 12_000 / fps) <= unit


@pytest.mark.parametrize("output_format", ["webm", "webp", "gif", "frames"])
def test_odd_sides_keep_every_pixel(output_format: VideoFormat, tmp_path: Path) -> None:
    video = moving(5, 65, 49)
    frames = decoded(written(tmp_path / "one", Film(video, 8, {}), output_format))
    assert frames.shape == (5, 49, 65, 3)
    assert decibels(frames[:, -1:, -1:], levels(video)[:, -1:, -1:]) > 30


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sides only, not 65x49; choose webm"):
        written(tmp_path / "one", Film(moving(5, 65, 49), 8, {}), "mp4")
    with pytest.raises(ValueError, match="at most 50 frames a second, not 60"):
        written(tmp_path / "one", Film(moving(5), 60, {}), "gif")
    with pytest.raises(ValueError, match="frames takes no quality"):
        written(tmp_path / "one", Film(moving(5), 8, {}), "frames", 50)
    assert unfit("mp4", 64, 49, 8) is not None and unfit("mp4", 64, 49, 8)[0] == "height"  # type: ignore[index]
    assert unfit("webm", 65, 49, 60) is unfit("mp4", 64, 48, 60) is unfit("gif", 65, 49, 50) is None


@pytest.mark.parametrize("output_format", ["mp4", "webm", "webp"])
def test_quality_trades_bytes_for_pixels(output_format: VideoFormat, tmp_path: Path) -> None:
    video = (moving(9) + torch.rand(9, 1, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.15).clamp(0, 1)
    paths = [written(tmp_path / str(quality), Film(video, 8, {}), output_format, quality) for quality in (0, 50, 100)]
    sizes = [path.stat().st_size for path in paths]
    fidelity = [decibels(decoded(path), levels(video)) for path in paths]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    assert fidelity == sorted(fidelity) and fidelity[0] < fidelity[2] - 3


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    for output_format in FORMATS:
        assert decoded(written(tmp_path / output_format, Film(moving(1), 8, {}), output_format)).shape[0] == 1


@pytest.mark.parametrize("output_format", FORMATS)
def test_encoding_stops_between_two_frames(output_format: VideoFormat, tmp_path: Path) -> None:
    class Enough(BaseException):
        pass

    asked = 0

    def between() -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            raise Enough

    with pytest.raises(Enough):
        write_video(tmp_path / "one", Film(moving(), 8, {}), output_format, None, between)
    assert asked == 4


@pytest.mark.parametrize("output_format", FORMATS)
def test_memory_does_not_grow_with_the_video(output_format: VideoFormat, tmp_path: Path) -> None:
    """Ours, that is; FFmpeg's encoders look ahead a fixed number of frames."""
    peaks = []
    for count in (8, 64):
        film = Film(moving(8, 128, 128)[:1].expand(count, 3, 128, 128), 8, {})
        tracemalloc.start()
        write_video(tmp_path / "one", film, output_format, None, lambda: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20 * 128 * 128, "far under one byte for each pixel more"


def test_stills_show_the_video() -> None:
    video = moving(33, 640, 320)
    assert thumbnail(video).size == (320, 160)
    assert np.asarray(thumbnail(video))[10, 45][0] > 150, "the middle frame's square"
    sheet = spritesheet(video)
    assert sheet.size == (4 * 160, 4 * 80)
    first, last = (np.asarray(sheet.crop(box)) for box in ((0, 0, 160, 80), (480, 240, 640, 320)))
    assert first[5, 3, 1] < 100 < last[5, 3, 1], "the square is in the corner at first, and not at last"
    assert spritesheet(video[:3]).size == (2 * 160, 2 * 80)
    assert spritesheet(video[:1]).size == (160, 80)
