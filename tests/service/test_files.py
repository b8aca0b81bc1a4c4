"""/v1/files over real HTTP: whole, in ranges, by validator, expired, and never anything else on the disk."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Served


@pytest.fixture
def file(served: Served) -> dict[str, Any]:
    """A fresh result file's facts."""
    job = served.client.post("/v1/jobs", json={"prompt": "a red circle", "output_format": "jpeg"}).json()
    return dict(served.until(job["id"], "succeeded")["result"]["files"][0])


def test_whole(served: Served, file: dict[str, Any]) -> None:
    answer = served.client.get(file["url"])
    assert answer.status_code == 200
    assert len(answer.content) == file["size_bytes"]
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'inline; filename="{file["id"]}"'
    assert "immutable" in answer.headers["cache-control"]
    head = served.client.head(file["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(file["size_bytes"])


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=5-", 5, -1), ("bytes=-4", -4, -1), ("bytes=0-99999", 0, -1)],
)
def test_range(served: Served, file: dict[str, Any], wanted: str, first: int, last: int) -> None:
    size = file["size_bytes"]
    whole = served.client.get(file["url"]).content
    answer = served.client.get(file["url"], headers={"Range": wanted})
    first, last = first % size, last % size
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert answer.content == whole[first : last + 1]


@pytest.mark.parametrize(
    "wanted", ["bytes=99999-", "bytes=0-1,3-4", "bytes=-", "bytes=-0", "lines=0-1", "bytes=9-2", "x"]
)
def test_range_not_satisfiable(served: Served, file: dict[str, Any], wanted: str) -> None:
    answer = served.client.get(file["url"], headers={"Range": wanted})
    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{file['size_bytes']}"


def test_validators(served: Served, file: dict[str, Any]) -> None:
    etag = served.client.get(file["url"]).headers["etag"]
    assert served.client.get(file["url"], headers={"If-None-Match": f'"x", {etag}'}).status_code == 304
    assert served.client.get(file["url"], headers={"If-None-Match": '"x"'}).status_code == 200
    same = served.client.get(file["url"], headers={"If-Range": etag, "Range": "bytes=0-1"})
    other = served.client.get(file["url"], headers={"If-Range": '"x"', "Range": "bytes=0-1"})
    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize("swept", [False, True])
def test_expired(served: Served, file: dict[str, Any], swept: bool) -> None:
    path = served.settings.results_dir / file["id"][:2] / file["id"]
    if swept:
        path.unlink()
    else:
        old = time.time() - served.settings.result_ttl_seconds - 60
        os.utime(path, (old, old))
    answer = served.client.get(file["url"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "expired")


TRICKS = [
    "nothing",
    "0" * 32 + "-" + "0" * 16 + "-0.png",
    "..",
    "../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "....//....//etc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "..%5c..%5cwindows",
    "%00",
    "a%00.png",
    "%c0%ae%c0%ae/",
    "0" * 32 + "-" + "0" * 16 + "-0.png%00.txt",
    "0" * 32 + "-" + "0" * 16 + "-0.png/../../canary",
    "\\\\host\\share",
    "canary.png",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_no_path_leaves_the_results(served: Served, trick: str) -> None:
    canary = served.settings.data / "canary"
    canary.write_text("the canary")
    request = f"GET /v1/files/{trick} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.server.port)) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400"), answer
    assert b"canary" not in answer.split(b"\r\n\r\n", 1)[1]
    assert b"root:" not in answer


def test_a_link_in_the_results_is_not_followed(served: Served, file: dict[str, Any]) -> None:
    path = served.settings.results_dir / file["id"][:2] / file["id"]
    path.unlink()
    path.symlink_to("/etc/passwd")
    answer = served.client.get(file["url"])
    assert answer.status_code in (404, 410)
    assert "root:" not in answer.text
