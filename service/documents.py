"""What the API's documentation says beyond the code: examples, and each route's error statuses. Decides nothing."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from jobs.comparing import CompareParameters
from jobs.request import ImageParameters, VideoParameters
from service import answers, openai_videos, reports
from service.errors import kind_of
from service.openai_images import DOCUMENTED, ImagesBody
from service.sending import MIME

_REF = "#/components/schemas/{model}"

_ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("The body is not JSON, or a header is malformed.", "invalid_json", "the body is not JSON: Expecting value"),
    401: ("An API key is required, or the one given is not valid.", "unauthorized", "the API key is not valid"),
    404: ("Not there, or another key's. An unknown model in a request answers so too.", "not_found", "no job '0f…'"),
    408: ("The body did not arrive in time.", "body_timeout", "the body must arrive within 30 seconds"),
    409: (
        "It cannot be done: the job is final, or not yet; or the id or Idempotency-Key came with another body before.",
        "job_finished",
        "job 0f… has succeeded already and cannot be canceled",
    ),
    410: ("The file existed and has expired.", "expired", "the file has expired; make the picture again"),
    413: ("The body is too long.", "body_too_large", "the body must be at most 262144 bytes"),
    414: ("Path and query are too long.", "url_too_long", "path and query must be at most 8192 bytes"),
    415: ("The body is not application/json, or compressed.", "unsupported_media_type", "send the body as JSON"),
    416: ("The file does not have these bytes, or several ranges were asked for.", "range_not_satisfiable", "…"),
    421: ("The Host header names another machine while no API keys are set.", "wrong_host", "use localhost"),
    422: (
        "A field is unknown, missing, of the wrong type or out of bounds.",
        "invalid_request",
        "n: must be …",
    ),
    429: ("The queue is full, or this key's part of it. Retry-After says when to come back.", "queue_full", "…"),
    431: ("The headers are too long.", "headers_too_large", "headers must be at most 16384 bytes in all"),
    500: ("The generation failed (its own code), or a bug.", "generation_failed", "the device ran out of memory; …"),
    503: (
        "No live worker serves the model, Redis is away, or the gateway is busy or shutting down; see Retry-After.",
        "no_worker",
        "no worker is running; try again shortly",
    ),
    504: ("Waited long enough; the job goes on at the address in Location.", "timeout", "not finished within 300 s"),
    507: ("Too little disk is free to keep results safe.", "disk_full", "… bytes of disk are free"),
}
_ANYWHERE = (401, 414, 421, 431, 500, 503)
SUBMITTING = (400, 404, 408, 409, 413, 415, 422, 429, 507)
READING = (404, 422)


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: these statuses and those that any route may answer with."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *_ANYWHERE}):
        text, code, message = _ERRORS[status]
        example = {"error": {"message": message, "type": kind_of(status), "param": None, "code": code}}
        found[status] = {
            "model": answers.ErrorAnswer,
            "description": text,
            "content": {"application/json": {"example": example}},
        }
        if status in (429, 503):
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def _body(examples: dict[str, Any], *schemas: str, form: bool = False) -> dict[str, Any]:
    """A request body of any of the schemas; `form` where it may also come as a multipart form."""
    refs = [{"$ref": _REF.format(model=name)} for name in schemas]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    content: dict[str, Any] = {"application/json": {"schema": schema, "examples": examples}}
    if form:
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}


def _header(name: str, text: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"} | schema}


_KEY = _header(
    "Idempotency-Key",
    "The same key with the same body gives the same job for 24 hours.",
    pattern="^[A-Za-z0-9_-]{1,128}$",
)
_PREFER = _header("Prefer", "`respond-async` answers 202 and a job at once.")
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}

JOB_EXAMPLES = {
    "simple": {"summary": "A picture", "value": {"prompt": "a red circle left of a blue square"}},
    "full": {
        "summary": "Everything chosen",
        "value": {
            "kind": "image",
            "prompt": "a large green star on a black background",
            "negative_prompt": "blue",
            "model": "shapes-unet",
            "profile": "w8a8",
            "width": 64,
            "height": 64,
            "num_inference_steps": 25,
            "guidance_scale": 4.0,
            "seed": 7,
            "n": 2,
            "output_format": "webp",
            "output_compression": 90,
            "previews": 2,
            "priority": "low",
        },
    },
    "video": {
        "summary": "A video",
        "value": {"kind": "video", "prompt": "a red circle moves left", "num_frames": 17, "fps": 8, "seed": 7},
    },
    "compare": {
        "summary": "A comparison",
        "value": {"kind": "compare", "prompt": "a red circle", "profiles": ["w8a8"], "seed": 7},
    },
}

IMAGES: dict[str, Any] = {
    "response_model": answers.ImagesAnswer,
    "response_description": "The pictures; with stream: true, server-sent events instead.",
    "responses": faults(*SUBMITTING, 410, 504)
    | {
        200: {"content": _STREAM},
        202: {"model": answers.JobAnswer, "description": "With Prefer: respond-async: the job, accepted."},
    },
    "openapi_extra": _body(DOCUMENTED, "ImagesBody") | {"parameters": [_KEY, _PREFER]},
}
SUBMIT_JOB: dict[str, Any] = {
    "response_model": answers.JobAnswer,
    "status_code": 202,
    "responses": faults(*SUBMITTING),
    "openapi_extra": _body(JOB_EXAMPLES, "ImageParameters", "VideoParameters", "CompareParameters")
    | {"parameters": [_KEY]},
}
PUT_JOB: dict[str, Any] = {
    "response_model": answers.JobAnswer,
    "status_code": 202,
    "responses": faults(*SUBMITTING) | {200: {"model": answers.JobAnswer, "description": "Accepted before."}},
    "openapi_extra": _body(JOB_EXAMPLES, "ImageParameters", "VideoParameters", "CompareParameters"),
}
COMPARE_EXAMPLES = {
    "simple": {"summary": "All profiles, one picture", "value": {"prompt": "a red circle left of a blue square"}},
    "full": {
        "summary": "Everything chosen",
        "value": {
            "model": "shapes-unet",
            "profiles": ["tfmq-w8a8", "tfmq-w4a8"],
            "prompts": ["a large green star on a black background", "a red circle"],
            "seeds": [1, 2],
            "num_inference_steps": 25,
            "guidance_scale": 3.0,
            "thresholds": {"min_psnr_db": 30, "max_latent_error": 0.1, "min_speedup": 1.2},
            "priority": "normal",
        },
    },
}
COMPARE: dict[str, Any] = {
    "response_model": reports.ReportAnswer,
    "response_description": "The report.",
    "responses": faults(*SUBMITTING, 410, 504)
    | {202: {"model": answers.JobAnswer, "description": "With Prefer: respond-async: the job, accepted."}},
    "openapi_extra": _body(COMPARE_EXAMPLES, "CompareParameters") | {"parameters": [_KEY, _PREFER]},
}
REPORT: dict[str, Any] = {
    "response_model": reports.ReportAnswer,
    "responses": faults(*READING, 409, 410)
    | {200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The report."}},
}
VIDEOS: dict[str, Any] = {
    "response_model": openai_videos.VideoAnswer,
    "response_description": "The video, queued.",
    "responses": faults(*SUBMITTING),
    "openapi_extra": _body(openai_videos.DOCUMENTED, "VideosBody", form=True) | {"parameters": [_KEY]},
}
_BYTES: dict[str, Any] = {"content": {kind: {} for kind in sorted(set(MIME.values()))}}
FILE = faults(404, 410, 416) | {
    200: {**_BYTES, "description": "The file."},
    206: {**_BYTES, "description": "The range that was asked for."},
    304: {"description": "The client has it already (If-None-Match)."},
}
CONTENT: dict[str, Any] = {"responses": FILE | {status: faults(status)[status] for status in (409, 422)}}
EVENTS: dict[str, Any] = {
    "responses": faults(*READING)
    | {
        200: {"content": _STREAM, "description": "Events; `id` is the place to resume from."},
        204: {"description": "The job is final and nothing comes after Last-Event-ID: do not reconnect."},
        429: faults(429)[429],
    },
    "openapi_extra": {"parameters": [_header("Last-Event-ID", "Resume after this event.")]},
}


def describe(app: FastAPI) -> None:
    """Put the bodies' schemas, which routes read themselves, into the application's OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _, bodies = models_json_schema(
                [
                    (ImagesBody, "validation"),
                    (openai_videos.VideosBody, "validation"),
                    (ImageParameters, "validation"),
                    (VideoParameters, "validation"),
                    (CompareParameters, "validation"),
                ],
                ref_template=_REF,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in bodies["$defs"].items():
                schemas.setdefault(name, schema)
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
