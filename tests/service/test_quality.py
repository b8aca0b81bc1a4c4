"""/v1/quality over real HTTP: comparisons wait or answer 202, reports list and open as JSON and as one page."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from jobs.comparing import MAX_PICTURES
from jobs.files import ResultStore
from service.report_page import STYLE, embedder, page
from service.reports import ReportAnswer

if TYPE_CHECKING:
    from tests.service.conftest import Served

ROUTE, REPORTS = "/v1/quality/compare", "/v1/quality/reports"
EVIL = 'a red </figcaption><script>alert(1)</script> & "circle" \' onload=x'
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "a red circle", "profiles": ["w8a8"]} | fields


def compared(served: Served, **fields: Any) -> dict[str, Any]:
    answer = served.client.post(ROUTE, json=asked(**fields))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(served: Served, param: str | None, text: str, status: int = 422, **fields: Any) -> None:
    answer = served.client.post(ROUTE, json=asked(**fields))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert text in error["message"], error


def test_a_comparison_waits_for_its_report(served: Served) -> None:
    found = compared(served, seeds=[1, 2], thresholds={"min_psnr_db": 25, "min_speedup": 1.5})
    assert (found["object"], found["status"], found["model"], found["profiles"]) == (
        *("quality.report", "succeeded", "tiny", ["w8a8"]),
    )
    report = found["report"]
    profile = report["profiles"][0]
    assert (profile["psnr_db"], profile["identical"], profile["verdict"]) == (30.0, 1, "passed")
    first, second = profile["pictures"]
    assert (first["scores"]["psnr_db"], first["scores"]["identical"]) == (None, True)
    assert (second["scores"]["psnr_db"], second["scores"]["identical"]) == (30.0, False)
    for picture in (*report["reference"]["pictures"], *profile["pictures"]):
        file = served.client.get(picture["url"])
        assert file.status_code == 200 and file.headers["content-type"] == "image/png"
    assert served.client.get(second["difference_url"]).status_code == 200
    assert found["summary"] == [
        {"profile": "w8a8", "verdict": "passed", "reasons": [], "quality": profile["quality"]},
    ]
    assert report["settings"]["seeds"] == [1, 2] and report["not_measured"]["lpips"]
    job = served.client.get(found["urls"]["job"]).json()
    assert (job["kind"], job["profile"], job["request"]["priority"]) == ("compare", "compare", "low")
    assert {file["variant"] for file in job["result"]["files"]} == {"picture", "difference", "report"}
    assert served.client.get(found["urls"]["get"]).json() == found


def test_respond_async_answers_at_once_and_the_report_comes_later(served: Served) -> None:
    answer = served.client.post(ROUTE, json=asked(prompt="hold still"), headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    job = answer.json()
    address = answer.headers["location"]
    assert address.endswith(f"{REPORTS}/{job['id']}")
    early = served.client.get(address).json()
    assert early["report"] is None and early["summary"] == [] and early["status"] in ("queued", "running")
    page = served.client.get(address, params={"format": "html"})
    assert (page.status_code, page.json()["error"]["code"]) == (409, "no_content")
    assert served.client.post(job["urls"]["cancel"]).status_code == 200
    served.until(job["id"], "canceled")
    assert served.client.get(address).json()["status"] == "canceled"


def test_failures_are_told(served: Served) -> None:
    answer = served.client.post(ROUTE, json=asked(prompt="fail please"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "out_of_memory")
    assert served.client.get(answer.headers["location"]).json()["error"]["code"] == "out_of_memory"


def test_the_same_through_jobs(served: Served) -> None:
    answer = served.client.post("/v1/jobs", json=asked(kind="compare", seed=3))
    assert answer.status_code == 202, answer.text
    done = served.until(answer.json()["id"], "succeeded")
    assert done["result"]["comparison"][0]["profile"] == "w8a8"
    assert served.client.get(f"{REPORTS}/{done['id']}").json()["report"]["settings"]["seeds"] == [3]


def test_what_is_left_out_comes_from_the_card(served: Served) -> None:
    found = compared(served)
    settings = found["report"]["settings"]
    card = served.client.get("/v1/models/tiny").json()["defaults"]
    assert (settings["width"], settings["num_inference_steps"]) == (card["width"], card["num_inference_steps"])
    assert len(settings["seeds"]) == 1
    body = {"model": "tiny", "prompt": "a red circle"}
    assert served.client.post(ROUTE, json=body).json()["profiles"] == ["w8a8"], "all that the model has"


def test_bad_comparisons_are_refused_with_the_reason(served: Served) -> None:
    refused(served, "profiles", "leave it out", profiles=["float"])
    refused(served, "profiles", "no profile 'w1a1'; it has: float, w8a8", profiles=["w1a1"])
    refused(served, "model", "no model", status=404, model="nobody")
    refused(served, None, "either prompt or prompts", prompts=["a"])
    refused(served, None, "either seed or seeds", seed=1, seeds=[1])
    refused(served, None, "must differ", seeds=[1, 1])
    prompts = [f"a {word}" for word in ["red", "blue", "circle", "square", "left", "of", "a"]]
    answer = served.client.post(
        ROUTE, json={"model": "tiny", "prompts": prompts, "seeds": list(range(8)), "profiles": ["w8a8"]}
    )
    assert answer.status_code == 422 and f"at most {MAX_PICTURES}" in answer.json()["error"]["message"]
    refused(served, "width", "multiple of", width=33)
    refused(served, "num_frames", "makes pictures", num_frames=5)
    refused(served, "thresholds.min_ssim", "less than or equal to 1", thresholds={"min_ssim": 2})
    refused(served, "thresholds.min_pnsr_db", "unknown", thresholds={"min_pnsr_db": 2})
    refused(served, "num_inference_steps", "at most", num_inference_steps=190)


def test_reports_are_listed_newest_first_by_pages(served: Served) -> None:
    made = [compared(served, seed=seed)["id"] for seed in range(3)]
    served.client.post("/v1/images/generations", json={"model": "tiny", "prompt": "a red circle"})
    first = served.client.get(REPORTS, params={"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == made[:0:-1] and first["has_more"]
    assert first["data"][0]["report"] is None and first["data"][0]["summary"][0]["verdict"] == "not judged"
    rest = served.client.get(REPORTS, params={"limit": 50, "after": first["last_id"]}).json()
    assert rest["data"][0]["id"] == made[0]
    assert all(one["object"] == "quality.report" for one in rest["data"])
    failed = served.client.get(REPORTS, params={"status": "failed"}).json()
    assert all(one["status"] == "failed" for one in failed["data"])
    assert served.client.get(REPORTS, params={"nonsense": 1}).status_code == 422


def test_a_job_that_is_no_comparison_has_no_report(served: Served) -> None:
    job = served.client.post("/v1/jobs", json={"model": "tiny", "prompt": "a red circle"}).json()
    answer = served.client.get(f"{REPORTS}/{job['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert served.client.get(f"{REPORTS}/{'0' * 32}").status_code == 404


class Reader(HTMLParser):
    """Notes every tag, attribute and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def html_of(served: Served, **fields: Any) -> httpx.Response:
    found = compared(served, **fields)
    return served.client.get(found["urls"]["get"], headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})


def test_the_page_holds_everything_and_fetches_nothing(served: Served) -> None:
    answer = html_of(served, prompt=EVIL, seeds=[1, 2], thresholds={"min_psnr_db": 90})
    assert answer.headers["content-type"].startswith("text/html") and answer.headers["vary"] == "Accept"
    reader = Reader()
    reader.feed(answer.text)
    assert "script" not in reader.tags and "link" not in reader.tags and "iframe" not in reader.tags
    assert not [fact for fact in reader.attributes if fact[1] == "style" or fact[1].startswith("on")]
    sources = [value for tag, name, value in reader.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in sources)
    assert reader.tags.count("img") == 2 + 2 * 2, "float's, and for each profile its picture and the difference"
    assert reader.tags.count("figure") == 6 + 3, "and three plots"
    assert EVIL in "".join(reader.texts), "shown as it was written"
    assert "difference x8" in answer.text and "under min_psnr_db 90" in answer.text
    assert all(alt for tag, name, alt in reader.attributes if (tag, name) == ("img", "alt"))
    names = [name for tag, name, _ in reader.attributes if tag == "img"]
    assert names.count("alt") == names.count("src")
    assert ("html", "lang", "en") in reader.attributes and "summary" in reader.tags


def test_the_policy_allows_the_pages_own_style_only(served: Served) -> None:
    answer = html_of(served)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["img-src"] == "data:" and "script-src" not in policy
    styles = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert styles == [STYLE]
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert policy["style-src"] == f"'sha256-{digest}'"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "text/html"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("application/json;q=0.5, text/html", "text/html"),
        ("text/html;q=\xb2, application/json;q=0.1", "application/json"),
    ],
)
def test_the_form_follows_the_accept_header(served: Served, accept: str, kind: str) -> None:
    found = compared(served)
    answer = served.client.get(found["urls"]["get"], headers={b"Accept": accept.encode("latin-1")})
    assert answer.headers["content-type"].startswith(kind)
    assert served.client.get(found["urls"]["html"], headers={"Accept": "*/*"}).text.startswith("<!doctype html>")
    assert served.client.get(found["urls"]["get"], params={"format": "pdf"}).status_code == 422


def test_what_a_page_has_no_room_for_is_linked(served: Served) -> None:
    found = ReportAnswer.model_validate(compared(served))
    text = page(found, embedder(ResultStore.of(served.settings), most=0))
    assert "<img" not in text and found.report is not None
    first = found.report.reference.pictures[0]
    assert f'<a href="{first.url}">{first.file}</a>' in text
    with_room = page(found, embedder(ResultStore.of(served.settings)))
    assert "<a href" not in with_room.replace('<a class="skip" href', "")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH; the page is held by parsing above")
def test_a_real_browser_shows_the_page_under_its_policy(served: Served, tmp_path: Path) -> None:
    answer = html_of(served, prompt=EVIL, seeds=[1, 2], thresholds={"min_psnr_db": 90})
    url = f"{answer.request.url}?format=html"
    assert BROWSER is not None
    shot = tmp_path / "page.png"
    command = [
        *(BROWSER, "--headless", "--disable-gpu", "--no-sandbox", "--enable-logging=stderr", "--v=0"),
        *(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=1200,1600", url),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert shot.is_file(), done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr, done.stderr[-2000:]
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    colours = {"float's": (250, 0, 0), "the profile's": (0, 250, 0), "the difference": (90, 90, 90)}
    for name, colour in colours.items():
        assert (pixels == colour).all(axis=-1).sum() > 1000, f"{name} picture is not on the screen"


def test_old_reports_are_gone_as_their_files_are(served: Served) -> None:
    found = compared(served)
    for file in (served.settings.results_dir / found["id"][:2]).glob(f"{found['id']}-*"):
        file.unlink()
    answer = served.client.get(found["urls"]["get"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "expired"), answer.text
