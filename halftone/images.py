"""What `generate` gives back: finished pictures, or a video, in memory, with how they were made. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from halftone.views import JobView, ResultView
from jobs.errors import InvalidRequest, JobCanceled, JobFailed
from jobs.job import Costs, JobState, ResultFile, Used
from jobs.request import Notice

File = TypeVar("File", bound=ResultFile)

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
VIDEO_FORMATS = {".mp4": "mp4", ".webm": "webm", ".webp": "webp", ".gif": "gif", ".zip": "frames"}
VIDEO_SUFFIXES = {name: suffix for suffix, name in VIDEO_FORMATS.items()}


@dataclass(frozen=True)
class Picture:
    """One picture, or video: the bytes of its file, and what is known of it."""

    data: bytes
    about: ResultFile

    @property
    def seed(self) -> int:
        """The seed that makes this picture again."""
        return self.about.seed


@dataclass(frozen=True)
class Images(Sequence[Picture]):
    """The pictures of one job, in order of their seeds, with what was used, what it cost and what to know."""

    job_id: str
    pictures: tuple[Picture, ...]
    used: Used
    costs: Costs
    notices: tuple[Notice, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Picture:  # type: ignore[override]
        return self.pictures[index]

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def save(self, path: str | Path) -> list[Path]:
        """Writes the pictures; several get -0, -1 … before the suffix. The paths written, in order.

        Raises:
            OSError: a file cannot be written.
        """
        place = Path(path)
        paths = [place] if len(self) == 1 else [place.with_stem(f"{place.stem}-{i}") for i in range(len(self))]
        for target, picture in zip(paths, self.pictures, strict=True):
            target.write_bytes(picture.data)
        return paths


@dataclass(frozen=True)
class Video:
    """The video of one job, with what was used, what it cost and what to know.

    `data` are the bytes of its file, in the format that was asked for; `about` tells its frames, fps and length.
    """

    job_id: str
    data: bytes
    about: ResultFile
    used: Used
    costs: Costs
    notices: tuple[Notice, ...] = ()

    @property
    def seed(self) -> int:
        """The seed that makes this video again."""
        return self.about.seed

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its one file, as `Images` has them."""
        return (Picture(self.data, self.about),)

    def save(self, path: str | Path) -> list[Path]:
        """Writes the video; the path written.

        Raises:
            OSError: the file cannot be written.
        """
        Path(path).write_bytes(self.data)
        return [Path(path)]


def video_file(files: Sequence[File]) -> File:
    """The video among a job's files.

    Raises:
        JobFailed: there is none; the job made something else.
    """
    found = next((file for file in files if file.variant == "video"), None)
    if found is None:
        raise JobFailed(f"The job made no video; its files are: {', '.join(file.variant for file in files)}")
    return found


def finished(job: JobView) -> ResultView:
    """The result of a job that is over.

    Raises:
        JobFailed: it failed; `code` is the failure's own.
        JobCanceled: it was canceled.
    """
    if job.status is JobState.SUCCEEDED and job.result is not None:
        return job.result
    if job.status is JobState.CANCELED:
        raise JobCanceled(f"Job {job.id} was canceled.")
    if job.error is None:
        raise JobFailed(f"Job {job.id} is {job.status} and says no more.")
    failure = JobFailed(job.error.message)
    failure.code = job.error.code
    raise failure


def format_of(path: Path | None, output_format: str | None, formats: Mapping[str, str] = FORMATS) -> str:
    """The output format that a file name and an explicit choice agree on; the first one when neither says.

    `formats` by suffix: `FORMATS` or `VIDEO_FORMATS`.

    Raises:
        InvalidRequest: the suffix is unknown, or says otherwise than `output_format`.
    """
    if path is None:
        return output_format or next(iter(formats.values()))
    by_suffix = formats.get(path.suffix.lower())
    if by_suffix is None:
        known = ", ".join(formats)
        raise InvalidRequest(f"{path} must end in one of {known}; its suffix is {path.suffix!r}", param="output")
    if output_format not in {None, by_suffix}:
        raise InvalidRequest(f"{path} is named as {by_suffix}, the format asked for is {output_format}", param="output")
    return by_suffix
