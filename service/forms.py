"""Bounded reading of a multipart form, as OpenAI's client sends it: text fields only. Knows no field and no route."""

from __future__ import annotations

from email.message import Message

from fastapi import Request

from jobs.errors import InvalidRequest
from service.body import from_another_site, read_bytes
from service.errors import MalformedBody, UnsupportedBody

FORM = "multipart/form-data"
MAX_FIELDS = 64


def is_form(request: Request) -> bool:
    """Whether the body says that it is a multipart form."""
    return _header("content-type", request.headers.get("content-type", "")).get_content_type() == FORM


async def read_form(request: Request, max_bytes: int) -> dict[str, str]:
    """The form's fields as text.

    Raises what `read_bytes` does, UnsupportedBody (415) for a form that another site's web page sent, MalformedBody
    (400: no form) or InvalidRequest (422: a file, a field twice, too many).
    """
    if from_another_site(request):
        raise UnsupportedBody("a web page of another site cannot send a form; send the body as JSON")
    raw = await read_bytes(request, max_bytes)
    return parse_form(raw, request.headers.get("content-type", ""))


def parse_form(raw: bytes, content_type: str) -> dict[str, str]:
    """Bytes of a multipart form (RFC 7578) to its fields; raises as `read_form`."""
    try:
        return _fields(raw, content_type)
    except ValueError as error:  # of encodings and numbers in headers that Python does not read
        raise MalformedBody(f"a header of the form cannot be read: {ascii(str(error))[1:-1][:100]}") from None


def _fields(raw: bytes, content_type: str) -> dict[str, str]:
    boundary = _header("content-type", content_type).get_boundary("")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise MalformedBody("a multipart form needs a boundary of 1 to 70 ASCII characters in its Content-Type")
    _, *parts = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("ascii"), MAX_FIELDS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise MalformedBody(f"the form does not end as it should, or has more than {MAX_FIELDS} fields")
    fields: dict[str, str] = {}
    for part in parts[:-1]:
        name, value = _field(part)
        if name in fields:
            raise InvalidRequest(f"the field {ascii(name)[:100]} appears twice", param=name[:100])
        fields[name] = value
    return fields


def _field(part: bytes) -> tuple[str, str]:
    """(name, value) of one part, from after its boundary to before the next."""
    head, end, value = part.partition(b"\r\n\r\n")
    if not end:
        raise MalformedBody("a part of the form has no blank line between its header and its value")
    about = Message()
    for line in head.strip().split(b"\r\n"):
        name, _, text = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            about = _header("content-disposition", text.decode("utf-8", "replace").strip())
    field = about.get_param("name", header="content-disposition")
    if not isinstance(field, str) or not field:
        raise MalformedBody("a part of the form has no name")
    if about.get_filename() is not None:
        raise InvalidRequest(
            f"{ascii(field)[1:-1][:100]}: files are not taken; videos are made of text", param=field[:100]
        )
    try:
        return field, value.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedBody(f"the field {ascii(field)[:100]} must be UTF-8") from None


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value.replace("\r", " ").replace("\n", " ")
    return message
