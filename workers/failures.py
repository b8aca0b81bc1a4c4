"""From an exception to what the job's user is told: a code and a message. Knows errors only."""

from __future__ import annotations

from jobs.errors import HalftoneError
from jobs.job import Failure

_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


def failure_of(error: Exception) -> Failure:
    """The failure for what ended a job. Details of unforeseen errors stay in the log, but for their own text."""
    if isinstance(error, HalftoneError):
        return Failure(code=error.code, message=error.message)
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _MEMORY_SIGNS):
        message = "the device ran out of memory; ask for a smaller size or fewer pictures, or use a smaller profile"
        return Failure(code="out_of_memory", message=message)
    return Failure(code="generation_failed", message=f"the pipeline failed: {type(error).__name__}: {error}"[:1000])
