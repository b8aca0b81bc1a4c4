"""The files that a job makes of what was drawn: pictures one by one; or a video, a still of it, and a sheet of stills.

Knows formats and facts. Must not know how anything is drawn, nor where files are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from jobs import video_formats
from jobs.job import Used, Variant
from jobs.request import GenerationRequest, ImageRequest, VideoRequest
from pipelines import media
from pipelines.families import UnsupportedModel
from workers.task import Drawn


@dataclass(frozen=True)
class Product:
    """One file to be made.

    Attributes:
        extension: of its id.
        mime: its type.
        write: puts it into a file that exists and is empty; may raise.
        width: of a picture or a frame, in pixels.
        height: likewise.
        seed: what it was made of.
        variant: what it is to its job.
        num_frames: of a video.
        fps: of a video.
    """

    extension: str
    mime: str
    write: Callable[[Path], None]
    width: int
    height: int
    seed: int
    variant: Variant = "picture"
    num_frames: int | None = None
    fps: int | None = None


def products_of(request: Drawn, made: Tensor, used: Used, alive: Callable[[], None]) -> Iterator[Product]:
    """What to store of pictures [n, 3, H, W], or of one video [1, F, 3, H, W], with the facts that made it inside.

    `alive` is called now and then while a long file is written; it may raise to stop that.

    Raises:
        UnsupportedModel: the pipeline made another size or number of frames than was asked for, or the format cannot
            hold it.
    """
    facts = used.model_dump() | {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    _check_size(request, made)
    if isinstance(request, ImageRequest):
        yield from _pictures(request, made, facts)
    else:
        yield from _video(request, made[0], facts, alive)


def _check_size(request: Drawn, made: Tensor) -> None:
    asked = f"{request.width}x{request.height}"
    height, width = made.shape[-2:]
    if (width, height) != (request.width, request.height):
        raise UnsupportedModel(f"the model made {width}x{height} pixels where {asked} were asked for")
    if not isinstance(request, VideoRequest):
        return
    if made.ndim != 5 or made.shape[1] != request.num_frames:
        count = made.shape[1] if made.ndim == 5 else "no"
        raise UnsupportedModel(f"the model made {count} frames where {request.num_frames} were asked for")
    fault = video_formats.unfit(request.output_format, width, height, request.fps)
    if fault is not None:
        raise UnsupportedModel(fault[1])


def _pictures(request: ImageRequest, made: Tensor, facts: dict[str, Any]) -> Iterator[Product]:
    ext, quality = request.output_format, request.output_compression
    for picture, seed in zip(made, request.seeds, strict=True):

        def write(path: Path, picture: Tensor = picture, seed: int = seed) -> None:
            path.write_bytes(media.encode(media.to_image(picture), ext, quality, facts | {"seed": seed}))

        yield Product(ext, media.MIME[ext], write, request.width, request.height, seed)


def _video(
    request: VideoRequest, frames: Tensor, facts: dict[str, Any], alive: Callable[[], None]
) -> Iterator[Product]:
    from pipelines.stills import spritesheet, thumbnail
    from pipelines.video_files import Film, write_video  # FFmpeg, which pictures do not need

    output_format, film = request.output_format, Film(frames, request.fps, facts)

    def write(path: Path) -> None:
        write_video(path, film, output_format, request.output_compression, alive)

    yield Product(
        video_formats.EXTENSION[output_format],
        video_formats.MIME[output_format],
        write,
        request.width,
        request.height,
        request.seed,
        "video",
        request.num_frames,
        request.fps,
    )
    yield _still(request, "thumbnail", thumbnail(frames), facts)
    yield _still(request, "spritesheet", spritesheet(frames), facts)


def _still(request: GenerationRequest, variant: Variant, image: Image.Image, facts: dict[str, Any]) -> Product:
    write = partial(_write_still, image, facts)
    return Product("webp", media.MIME["webp"], write, image.width, image.height, request.seed, variant)


def _write_still(image: Image.Image, facts: dict[str, Any], path: Path) -> None:
    path.write_bytes(media.encode(image, "webp", None, facts))
