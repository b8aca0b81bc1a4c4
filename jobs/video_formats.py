"""The kinds of files that videos come as: their names, types, and what each cannot hold. Encodes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.request import VideoFormat

EXTENSION: Mapping[VideoFormat, str] = {"mp4": "mp4", "webm": "webm", "webp": "webp", "gif": "gif", "frames": "zip"}
MIME: Mapping[VideoFormat, str] = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "webp": "image/webp",
    "gif": "image/gif",
    "frames": "application/zip",
}

GIF_MAX_FPS = 50
"""GIF counts time in hundredths of a second, and browsers show a frame of one hundredth for ten."""


def unfit(output_format: VideoFormat, width: int, height: int, fps: int) -> tuple[str, str] | None:
    """(the field at fault, why) where a format cannot hold such a video without loss of pixels or frames; else None."""
    if output_format == "mp4" and (width % 2 or height % 2):
        side = "width" if width % 2 else "height"
        return side, f"mp4 (H.264, 4:2:0) holds even sides only, not {width}x{height}; choose webm, webp, gif or frames"
    if output_format == "gif" and fps > GIF_MAX_FPS:
        return "fps", f"gif shows at most {GIF_MAX_FPS} frames a second, not {fps}; choose mp4, webm or webp"
    return None
