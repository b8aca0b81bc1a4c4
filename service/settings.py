"""What an operator may set for the gateway, read from HALFTONE_* variables. Knows no route."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from jobs.settings import Settings as SharedSettings

_SHA256 = re.compile(r"[0-9a-f]{64}")


GuardAction = Literal["report", "refuse", "replace"]
"""Served with a notice; refused with 422; or served by the next safer profile, with a notice."""


class Settings(SharedSettings):
    """The shared settings and the gateway's own. Every field is set by `HALFTONE_<NAME>`."""

    host: str = Field("127.0.0.1", description="Address to listen on; one that others can reach needs keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/[^\s]*)?$",
        description="The address in links, behind a proxy.",
    )
    api_key_hashes: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="SHA-256 of each accepted API key in hexadecimal, separated by commas."
    )
    allow_anonymous: bool = Field(False, description="Listen beyond this machine although no keys are set.")
    default_model: str = Field("shapes-unet", description="The model of requests that name none.")
    default_video_model: str = Field("shapes-video", description="The model of videos whose request names none.")
    max_body_bytes: int = Field(256 * 1024, ge=1024, description="Longest request body.")
    sync_wait_seconds: float = Field(300, gt=0, description="How long a request waits for its picture before 504.")
    max_job_seconds: float = Field(600, gt=0, description="Estimated device seconds over which a job is refused.")
    max_video_seconds: float = Field(1800, gt=0, description="The same for a video, or a comparison of videos.")
    max_video_pixels: int = Field(111_513_600, ge=64, description="Pixels over all frames of a video.")
    guard_action: GuardAction = Field(
        "report", description="What a request gets that names a profile which failed the quality guard."
    )
    promise_confidence: float = Field(
        0.95, ge=0.5, le=0.99, description="Share of pictures that keep what auto promises, with that confidence."
    )
    max_open_requests: int = Field(512, ge=1, description="Requests open at once; more are answered 503.")
    event_streams_per_key: int = Field(64, ge=1, description="Event streams open at once per API key.")
    stream_seconds: float = Field(1800, gt=0, description="Longest life of an event stream.")
    ping_seconds: float = Field(15, gt=0, description="Silence after which an event stream says that it lives.")
    drain_notice_seconds: float = Field(1, ge=0, description="After SIGTERM: /readyz says DRAINING for so long first.")
    drain_seconds: int = Field(60, ge=1, description="After that: open requests may take so long to finish.")

    @field_validator("api_key_hashes", mode="before")
    @classmethod
    def _split_hashes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hashes = tuple(part.strip().lower() for part in value.split(",") if part.strip())
        if not all(_SHA256.fullmatch(part) for part in hashes):
            raise ValueError("each must be 64 hexadecimal digits, as `printf %s KEY | sha256sum` prints them")
        return hashes

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not self.api_key_hashes and not self.allow_anonymous and not is_loopback(self.host):
            raise ValueError(
                f"HALFTONE_HOST={self.host} is reachable from other machines but no API keys are set: set "
                "HALFTONE_API_KEY_HASHES, or HALFTONE_ALLOW_ANONYMOUS=1 when something else guards the port"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only; any name but localhost counts as reachable by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
