"""What the two clients share: requests, answers, events, errors, and when to try again. Does no I/O."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from halftone.version import __version__
from jobs.errors import HalftoneError, InvalidRequest, NotFound, TimedOut, Unauthorized, Unavailable
from jobs.job import JOB_ID, JobState

DEFAULT_URL = "http://127.0.0.1:8000"
T = TypeVar("T", bound=BaseModel)

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
EVENT_SILENCE_SECONDS = 60.0  # the gateway sends comments more often than that
LIVED_SECONDS = 5.0  # a stream that ends after a longer life was no failure
FINAL_EVENTS = frozenset(state.value for state in JobState if state.final)


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. `id` is where to resume: pass it as `after`."""

    id: str
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self.type in FINAL_EVENTS


@dataclass
class EventParser:
    """Server-sent events from lines, by the WHATWG rules that our gateway uses (id, event, data, comments)."""

    _id: str = ""
    _type: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Event | None:
        """Takes one line without its end; gives the event that a blank line completes.

        Raises:
            Unavailable: the data of an event is not a JSON object.
        """
        if line == "":
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        return None

    def _complete(self) -> Event | None:
        lines, kind = self._data, self._type
        self._data, self._type = [], ""
        if not lines:
            return None
        try:
            data = json.loads("\n".join(lines))
        except json.JSONDecodeError as fault:
            raise Unavailable(f"The event stream sent data that is not JSON: {fault}") from fault
        if not isinstance(data, dict):
            raise Unavailable(f"The event stream sent {type(data).__name__} where an object was expected.")
        return Event(self._id, kind or "message", data)


@dataclass(frozen=True)
class RetryPolicy:
    """When a refused or broken call is made again: up to `retries` times, each after at most `max_wait` seconds."""

    retries: int = 6
    max_wait: float = 60.0

    def delay(self, attempt: int, error: HalftoneError) -> float | None:
        """Seconds to wait before trying once more after attempt number `attempt` (from 0); None to give up."""
        if attempt >= self.retries:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.max_wait else None
        return min(0.2 * 2.0**attempt, self.max_wait) if isinstance(error, Unavailable) else None

    def pause(self, attempt: int, error: HalftoneError, deadline: float | None = None) -> float:
        """As `delay`, but not past `deadline` (monotonic seconds); raises `error` where it gives up."""
        delay = self.delay(attempt, error)
        if delay is None:
            raise error
        return delay if deadline is None else max(0.0, min(delay, deadline - time.monotonic()))


def _families(root: type[HalftoneError]) -> dict[str, type[HalftoneError]]:
    found = {root.code: root}
    for family in root.__subclasses__():
        found.update(_families(family))
    return found


def error_class(code: str, status: int) -> type[HalftoneError]:
    """The class of jobs.errors for an error's code; for a code of a newer gateway, the nearest by HTTP status."""
    by_status: dict[int, type[HalftoneError]] = {401: Unauthorized, 404: NotFound, 502: Unavailable, 503: Unavailable}
    other = InvalidRequest if 400 <= status < 500 else HalftoneError
    return _families(HalftoneError).get(code) or by_status.get(status, other)


def error_of(response: httpx.Response) -> HalftoneError:
    """The error that an answer with status 400 or above stands for; its body must have been read."""
    try:
        body = response.json()["error"]
        code, message, param = str(body.get("code")), str(body["message"]), body.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, param = "", None
        message = f"{response.request.url} answered {response.status_code}: {response.text[:200]}"
    kind = error_class(code, response.status_code)
    error = kind(message, param=param, retry_after=retry_after(response.headers))
    error.code = code or kind.code
    return error


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds in a Retry-After header; None where there is none or it is not a number of seconds."""
    value = headers.get("retry-after", "")
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d+)?", value) else None


def unreachable(url: httpx.URL | str, fault: httpx.TransportError) -> Unavailable:
    """What to tell a user when the gateway cannot be reached or broke off."""
    reason = str(fault) or type(fault).__name__
    error = Unavailable(
        f"No answer from {url}: {reason}. Is it running (`halftone serve`)? HALFTONE_URL sets another address."
    )
    error.__cause__ = fault
    return error


@dataclass(frozen=True)
class Call:
    """One HTTP call, ready to be made and, if need be, made again."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, str | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def parse_size(size: str) -> tuple[int, int]:
    """(width, height) of a size such as 64x64.

    Raises:
        InvalidRequest: it is not two numbers with an x between.
    """
    match = SIZE.fullmatch(size)
    if match is None:
        raise InvalidRequest(f"size must look like 64x64; got {size!r}", param="size")
    return int(match[1]), int(match[2])


def submission(prompt: str, size: str | None, idempotency_key: str | None, fields: Mapping[str, Any]) -> Call:
    """The call that submits a job; fields that are None are left to the model's defaults. Safe to make twice.

    Raises:
        InvalidRequest: size and fields contradict each other, or something cannot be sent as JSON.
    """
    return _post("/v1/jobs", {"prompt": prompt}, size, idempotency_key, fields)


def comparison(
    prompts: str | Sequence[str], size: str | None, idempotency_key: str | None, fields: Mapping[str, Any]
) -> Call:
    """The call that submits a comparison and is answered at once; else as `submission`."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    call = _post("/v1/quality/compare", {"prompts": texts}, size, idempotency_key, fields)
    return replace(call, headers=call.headers | {"prefer": "respond-async"})


def _post(path: str, asked: dict[str, Any], size: str | None, key: str | None, fields: Mapping[str, Any]) -> Call:
    body = asked | {name: value for name, value in fields.items() if value is not None}
    if size is not None:
        if "width" in body or "height" in body:
            raise InvalidRequest("give either size, or width and height", param="size")
        body["width"], body["height"] = parse_size(size)
    for name, value in body.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # as httpx does it
        except (TypeError, ValueError) as fault:
            raise InvalidRequest(f"{name}: {value!r} cannot be sent as JSON: {fault}", param=name) from fault
    return Call("POST", path, body, headers={"idempotency-key": key or secrets.token_hex(16)})


def report_path(report_id: str) -> str:
    """The path of a comparison's report.

    Raises:
        InvalidRequest: the id is not 32 hexadecimal digits.
    """
    if not JOB_ID.fullmatch(report_id):
        raise InvalidRequest(f"a report's id is 32 hexadecimal digits; got {report_id!r}", param="report_id")
    return f"/v1/quality/reports/{report_id}"


def lifting(model: str, profile: str) -> Call:
    """The call that takes a verdict of the quality guard back."""
    return Call("POST", f"/v1/quality/guard/{quote(model, safe='')}/{quote(profile, safe='')}/lift")


def read(kind: type[T], response: httpx.Response) -> T:
    """An answer's body as a model."""
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as fault:
        raise Unavailable(f"{response.request.url} is no gateway that this client knows: {fault}") from fault


def connection(url: str | None, api_key: str | None, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """(base address, headers of every call) from what was given, else from the environment.

    Raises:
        InvalidRequest: the address is no http or https URL, or the key is no printable ASCII.
    """
    base = (url or environment.get("HALFTONE_URL") or DEFAULT_URL).rstrip("/")
    if not re.match(r"https?://[^/]", base):
        raise InvalidRequest(f"the gateway's address must start with http:// or https://; got {base!r}", param="url")
    try:
        httpx.URL(base)
    except httpx.InvalidURL as fault:
        raise InvalidRequest(f"the gateway's address {base!r} is no URL: {fault}", param="url") from fault
    key = api_key or environment.get("HALFTONE_API_KEY")
    if key and not re.fullmatch(r"[ -~]+", key):
        raise InvalidRequest("an API key has printable ASCII characters only", param="api_key")
    headers = {"user-agent": f"halftone/{__version__}"}
    return base, headers | ({"authorization": f"Bearer {key}"} if key else {})


def job_path(job_id: str, rest: str = "") -> str:
    """The path of a job, or of something below it.

    Raises:
        InvalidRequest: the id is not 32 hexadecimal digits.
    """
    if not JOB_ID.fullmatch(job_id):
        raise InvalidRequest(f"a job id is 32 hexadecimal digits; got {job_id!r}", param="job_id")
    return f"/v1/jobs/{job_id}{rest}"


def file_path(file_id: str) -> str:
    """The path of a result file.

    Raises:
        InvalidRequest: the id has characters that no file id has.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", file_id):
        raise InvalidRequest(f"no file id looks like {file_id!r}", param="file_id")
    return f"/v1/files/{file_id}"


def listing(limit: int, after: str | None, status: str | None, path: str = "/v1/jobs") -> Call:
    """The call for one page of jobs, or of reports."""
    query: dict[str, str | int | None] = {"limit": limit, "after": after, "status": status}
    return Call("GET", path, query={name: value for name, value in query.items() if value is not None})


def event_headers(after: str | None) -> dict[str, str]:
    """Headers that open an event stream, after the event of that id if one is given."""
    return {"accept": "text/event-stream"} | ({} if after is None else {"last-event-id": after})


def silence(job_id: str, deadline: float | None) -> float:
    """Seconds that an event stream may be silent until it is opened anew: not past `deadline` (monotonic seconds).

    Raises:
        TimedOut: the deadline is over.
    """
    if deadline is None:
        return EVENT_SILENCE_SECONDS
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimedOut(f"Job {job_id} was not over in time; it goes on.")
    return min(EVENT_SILENCE_SECONDS, left)


def broken_off(job_id: str) -> Unavailable:
    """An event stream that ended before its job."""
    return Unavailable(f"The event stream of job {job_id} ended before the job did.")
