"""What `generate` gives back: finished pictures in memory, with how they were made. Knows files, never HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from halftone.views import JobView, ResultView
from jobs.errors import InvalidRequest, JobCanceled, JobFailed
from jobs.job import Costs, JobState, ResultFile, Used
from jobs.request import Notice

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}


@dataclass(frozen=True)
class Picture:
    """One picture: the bytes of its file, and what is known of it."""

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


def format_of(path: Path | None, output_format: str | None) -> str:
    """The output format that a file name and an explicit choice agree on; png when neither says.

    Raises:
        InvalidRequest: the suffix is unknown, or says otherwise than `output_format`.
    """
    if path is None:
        return output_format or "png"
    by_suffix = FORMATS.get(path.suffix.lower())
    if by_suffix is None:
        known = ", ".join(FORMATS)
        raise InvalidRequest(f"{path} must end in one of {known}; its suffix is {path.suffix!r}", param="output")
    if output_format not in {None, by_suffix}:
        raise InvalidRequest(f"{path} is named as {by_suffix}, the format asked for is {output_format}", param="output")
    return by_suffix
