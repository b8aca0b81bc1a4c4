"""Videos as files: MP4, WebM, animated WebP, GIF, and a zip of PNG files; each with what made it inside.

Frames are encoded one by one into a file, so that memory does not grow with the video and a caller can stop in between.
The same frames and facts give the same bytes. H.264, VP9 and WebP are encoded by PyAV, whose wheel carries x264 (GPL).
Must not know jobs, pipelines, or where files are kept.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.request import VideoFormat
from jobs.video_formats import unfit
from pipelines.media import KEY, to_image

Between = Callable[[], None]
"""Called before each frame; whatever it raises ends the encoding."""

DEFAULT_QUALITY: Mapping[VideoFormat, int] = {"mp4": 66, "webm": 66, "webp": 90}
"""Of formats that lose something: 0 to 100."""

BT709 = 1
"""Code of the colour space, primaries and transfer of high-definition video, which players assume."""

_X264 = {"preset": "medium", "flags": "+bitexact"}
_VP9 = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0", "flags": "+bitexact"}
_MOSAIC = 16
"""Frames that a GIF's palette is taken from."""
_COLOURS = 256


@dataclass(frozen=True, slots=True)
class Film:
    """A video and what made it.

    Attributes:
        frames: [F, 3, H, W] float in 0..1, on the CPU.
        fps: frames a second.
        facts: written into the file as JSON under the key `halftone`.
    """

    frames: Tensor
    fps: int
    facts: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[-1], self.frames.shape[-2]

    @property
    def told(self) -> str:
        """The facts as a file holds them."""
        return json.dumps({KEY: dict(self.facts)}, sort_keys=True)

    def pictures(self, between: Between) -> Iterator[Image.Image]:
        """The frames as 8-bit RGB, one after the other."""
        for frame in self.frames:
            between()
            yield to_image(frame)


def write_video(path: Path, film: Film, output_format: VideoFormat, quality: int | None, between: Between) -> None:
    """Writes the file. One that was not written to its end is to be deleted by the caller.

    Args:
        path: of the file, which is made or replaced; its name does not matter.
        film: what to write.
        output_format: of the file.
        quality: 0 to 100, of mp4, webm and webp; None takes the default.
        between: called before each frame.

    Raises:
        ValueError: the format cannot hold such a video, or takes no quality.
    """
    fault = unfit(output_format, *film.size, film.fps)
    if fault is not None:
        raise ValueError(fault[1])
    if quality is not None and output_format not in DEFAULT_QUALITY:
        raise ValueError(f"{output_format} takes no quality")
    chosen = DEFAULT_QUALITY.get(output_format, 0) if quality is None else quality
    match output_format:
        case "mp4":
            # a quality of 100 is crf 1: 0 would be another profile, which browsers do not play
            options = _X264 | {"crf": f"{51 - chosen / 2:g}", "g": str(2 * film.fps)}
            _mux(path, film, between, "mp4", "libx264", {"movflags": "+faststart"}, options)
        case "webm":
            options = _VP9 | {"crf": f"{63 - 0.63 * chosen:.0f}", "g": str(2 * film.fps)}
            _mux(path, film, between, "webm", "libvpx-vp9", {}, options)
        case "webp":
            options = {"quality": str(chosen), "compression_level": "4"}
            _mux(path, film, between, "webp", "libwebp_anim", {"loop": "0"}, options, pixels="bgra")
            _add_to_webp(path, film)
        case "gif":
            _write_gif(path, film, between)
        case "frames":
            _write_archive(path, film, between)


def _mux(
    path: Path,
    film: Film,
    between: Between,
    container: str,
    codec: str,
    container_options: dict[str, str],
    options: dict[str, str],
    pixels: str = "yuv420p",
) -> None:
    """Encodes by one of FFmpeg's encoders, on one thread: with more, bytes depend on how many."""
    frames = (_converted(picture, pixels) for picture in film.pictures(between))
    settings = {"fflags": "+bitexact"} | container_options
    with av.open(str(path), "w", format=container, options=settings) as file:
        file.metadata["comment"] = film.told
        _encode(file, frames, codec, film, pixels, options)


def _encode(
    file: Any, frames: Iterator[av.VideoFrame], codec: str, film: Film, pixels: str, options: dict[str, str]
) -> None:
    stream = file.add_stream(codec, rate=film.fps, options=options)
    stream.width, stream.height = film.size
    stream.pix_fmt = pixels
    context = stream.codec_context
    context.time_base = Fraction(1, film.fps)
    context.thread_count = 1
    if pixels == "yuv420p":
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = BT709
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, context.time_base
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def _converted(picture: Image.Image, pixels: str) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(
        format=pixels,
        dst_colorspace=Colorspace.ITU709 if pixels == "yuv420p" else None,
        dst_color_range=ColorRange.MPEG if pixels == "yuv420p" else None,
        interpolation=int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT),
    )


# ---- animated WebP: EXIF, which FFmpeg does not write ----------------------------------------------------------------


def _add_to_webp(path: Path, film: Film) -> None:
    """Adds the facts as an EXIF chunk to a WebP file (RFC 9649); a still video comes without the chunk that says so."""
    exif = Image.Exif()
    exif[0x010E] = film.told  # ImageDescription, as in pictures
    chunks = path.read_bytes()[12:]
    if chunks[:4] != b"VP8X":
        sides = b"".join((side - 1).to_bytes(3, "little") for side in film.size)
        chunks = _chunk(b"VP8X", bytes(4) + sides) + chunks
    flags = bytes([chunks[8] | 0x08])
    chunks = chunks[:8] + flags + chunks[9:] + _chunk(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(_chunk(b"RIFF", b"WEBP" + chunks))


def _chunk(name: bytes, payload: bytes) -> bytes:
    return name + len(payload).to_bytes(4, "little") + payload + b"\0" * (len(payload) % 2)


# ---- GIF -------------------------------------------------------------------------------------------------------------


def _write_gif(path: Path, film: Film, between: Between) -> None:
    """One palette for all frames and no dithering: both would make still parts flicker."""
    palette = _palette(film)
    colours = np.zeros((_COLOURS, 4), np.uint8)
    known = np.asarray(palette.getpalette() or [], np.uint8).reshape(-1, 3)
    colours[: len(known), :3] = known[:, ::-1]  # FFmpeg's pal8 is B, G, R, A
    colours[:, 3] = 255
    frames = (_indexed(picture, palette, colours) for picture in film.pictures(between))
    with av.open(str(path), "w", format="gif", options={"fflags": "+bitexact", "loop": "0"}) as file:
        _encode(file, frames, "gif", film, "pal8", {"flags": "+bitexact"})
    _add_to_gif(path, film)


def _palette(film: Film) -> Image.Image:
    """A picture whose palette suits frames from all over the video."""
    count = len(film.frames)
    chosen = sorted({round(place * (count - 1) / (_MOSAIC - 1)) for place in range(_MOSAIC)})
    width, height = film.size
    mosaic = Image.new("RGB", (width, height * len(chosen)))
    for place, number in enumerate(chosen):
        mosaic.paste(to_image(film.frames[number]), (0, place * height))
    return mosaic.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _indexed(picture: Image.Image, palette: Image.Image, colours: NDArray[np.uint8]) -> av.VideoFrame:
    levels = np.asarray(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    frame = av.VideoFrame(picture.width, picture.height, "pal8")
    plane = np.zeros((picture.height, frame.planes[0].line_size), np.uint8)
    plane[:, : picture.width] = levels
    frame.planes[0].update(plane.tobytes())
    frame.planes[1].update(colours.tobytes())
    return frame


def _add_to_gif(path: Path, film: Film) -> None:
    """Puts the facts into a comment extension behind the global palette (GIF89a, section 24)."""
    data = path.read_bytes()
    flags = data[10]
    place = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    text = film.told.encode("ascii")
    blocks = (text[start : start + 255] for start in range(0, len(text), 255))
    comment = b"!\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    path.write_bytes(data[:place] + comment + data[place:])


# ---- frames ----------------------------------------------------------------------------------------------------------


def _write_archive(path: Path, film: Film, between: Between) -> None:
    """`facts.json` and `frame-0001.png` … in a zip file without compression of its own."""
    width, height = film.size
    facts = json.loads(film.told) | {"num_frames": len(film.frames), "fps": film.fps, "width": width, "height": height}
    with zipfile.ZipFile(path, "w") as archive:
        _put(archive, "facts.json", json.dumps(facts, sort_keys=True, indent=2).encode())
        for number, picture in enumerate(film.pictures(between), start=1):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            _put(archive, f"frame-{number:04d}.png", buffer.getvalue())


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # a ZipInfo of its own is of 1980, whatever the clock says
