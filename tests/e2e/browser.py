"""A real browser that plays a video and tells what it saw: headless Chromium, where there is one. Knows no Halftone."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import httpx

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
)
FORWARDED = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "x-content-type-options")
PAGE = """<!doctype html><video id=v muted playsinline></video><script>
const v = document.getElementById("v"), tell = facts => fetch("/told", {method: "POST", body: JSON.stringify(facts)});
v.onerror = () => tell({error: v.error.code + ": " + v.error.message});
v.onended = () => tell({width: v.videoWidth, height: v.videoHeight, duration: v.duration, at: v.currentTime,
                        frames: v.getVideoPlaybackQuality().totalVideoFrames});
v.src = "/video";
v.play().catch(error => tell({error: String(error)}));
</script>"""


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def play(program: str, url: str, folder: Path, seconds: float = 60) -> dict[str, Any]:
    """What a video element at a page tells once it has played the video at a URL to its end, or failed to.

    The page passes the video on from where it lies: results of a service are not for pages of other origins.

    Raises:
        TimeoutError: it told nothing in time.
    """
    told: Queue[dict[str, Any]] = Queue()
    with _page(url, told) as address:
        command = [program, *FLAGS, f"--user-data-dir={folder}", address]
        log = folder.with_suffix(".log")
        with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
            try:
                return told.get(timeout=seconds)
            except Empty:
                raise TimeoutError(f"the browser told nothing; its log ends: {log.read_text('utf-8')[-500:]}") from None
            finally:
                process.kill()


@contextlib.contextmanager
def _page(url: str, told: Queue[dict[str, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/video":
                self._answer(200, {"content-type": "text/html"}, PAGE.encode())
                return
            asked = {"range": self.headers["range"]} if "range" in self.headers else {}
            found = httpx.get(url, headers=asked)
            told_of_it = {name: found.headers[name] for name in FORWARDED if name in found.headers}
            self._answer(found.status_code, told_of_it, found.content)

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer(200, {}, b"")

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in ({"content-length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
