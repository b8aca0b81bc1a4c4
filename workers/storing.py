"""From pictures to stored files: encoded one by one, all or none kept. Must not know how pictures are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from jobs.job import ResultFile, Used
from jobs.request import ImageRequest
from pipelines.families import UnsupportedModel
from pipelines.media import MIME, encode, to_image
from workers.seams import Stages
from workers.task import Assignment, Task


@dataclass(frozen=True)
class Encoded:
    """One picture as the bytes of its file."""

    data: bytes
    width: int
    height: int
    seed: int


def encoded(request: ImageRequest, pictures: Tensor, used: Used, stages: Stages) -> Iterator[Encoded]:
    """Encodes one picture after the other, with the facts that made it inside.

    Raises:
        UnsupportedModel: the pipeline made another size than was asked for.
    """
    height, width = pictures.shape[-2:]
    if (width, height) != (request.width, request.height):
        asked = f"{request.width}x{request.height}"
        raise UnsupportedModel(f"the model made {width}x{height} pixels where {asked} were asked for")
    about = used.model_dump() | {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    for picture, seed in zip(pictures, request.seeds, strict=True):
        with stages.time("encode"):
            data = encode(to_image(picture), request.output_format, request.output_compression, about | {"seed": seed})
        yield Encoded(data, width, height, seed)


def store_pictures(task: Task, run: Assignment, pictures: Iterable[Encoded], stages: Stages) -> tuple[ResultFile, ...]:
    """Stores all pictures, or none."""
    files = []
    try:
        for index, picture in enumerate(pictures):
            task.check()
            with stages.time("store"):
                files.append(store_one(task, run, index, picture))
    except BaseException:
        run.store.discard(task.job_id, task.token)
        raise
    return tuple(files)


def store_one(task: Task, run: Assignment, index: int, picture: Encoded) -> ResultFile:
    """Stores one picture, safe from a crash from here on."""
    file_id, _ = run.store.write(task.job_id, task.token, index, picture.data, run.request.output_format)
    return ResultFile(
        id=file_id,
        mime=MIME[run.request.output_format],
        size_bytes=len(picture.data),
        sha256=hashlib.sha256(picture.data).hexdigest(),
        width=picture.width,
        height=picture.height,
        seed=picture.seed,
    )
