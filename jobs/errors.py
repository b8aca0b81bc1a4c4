"""Every fault that a user can meet, as data: a stable code, a message that says what to do. Knows no HTTP."""

from __future__ import annotations


class HalftoneError(Exception):
    """Root of all faults that are told to a user.

    Attributes:
        code: stable machine-readable name, part of the API.
        message: what was wrong, what was expected, what to do.
        param: the request field at fault, when there is one.
        retry_after: seconds after which the same request may succeed, when time can heal it.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(HalftoneError):
    """A field is missing, unknown, of the wrong type, or out of bounds."""

    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """No model has the id that was asked for."""

    code = "unknown_model"


class UnknownProfile(InvalidRequest):
    """The model has no profile of that name."""

    code = "unknown_profile"


class PromiseUnmet(InvalidRequest):
    """No profile keeps what was asked of `auto`; the message names the nearest."""

    code = "promise_unmet"


class ProfileFailed(InvalidRequest):
    """The quality guard judged the profile failed, and the operator has such profiles refused."""

    code = "profile_failed"


class NotFound(HalftoneError):
    """No such job or file, or it belongs to another key."""

    code = "not_found"


class Expired(HalftoneError):
    """The file existed and its time is over."""

    code = "expired"


class JobFinished(HalftoneError):
    """A finished job cannot be canceled."""

    code = "job_finished"


class IdempotencyConflict(HalftoneError):
    """The same idempotency key or job id came with a different body."""

    code = "idempotency_conflict"


class Unauthorized(HalftoneError):
    """A key is required and none, or a wrong one, was given."""

    code = "unauthorized"


class QueueFull(HalftoneError):
    """The queue holds as many jobs, or as much estimated work, as it may."""

    code = "queue_full"


class NoWorker(HalftoneError):
    """No live worker serves the model and profile."""

    code = "no_worker"


class Unavailable(HalftoneError):
    """Redis is away, or refuses writes."""

    code = "unavailable"


class DiskFull(HalftoneError):
    """Free disk space is under the floor that keeps results safe."""

    code = "disk_full"


class JobFailed(HalftoneError):
    """A job was accepted and its generation failed; `code` is the failure's own."""

    code = "generation_failed"


class JobCanceled(HalftoneError):
    """A job that somebody waited for was canceled."""

    code = "canceled"


class TimedOut(HalftoneError):
    """Waiting for a result took longer than the gateway waits; the job goes on and can be polled."""

    code = "timeout"


class BadSettings(HalftoneError):
    """A setting is missing or wrong; processes refuse to start with it."""

    code = "bad_settings"
