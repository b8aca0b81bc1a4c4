"""`halftone compare` and the clients' comparisons: thresholds read, calls made, tables told; and without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from halftone import AsyncClient, Client, wire
from halftone.cli import app
from halftone.commands.compare import COLUMNS, FAILED_STATUS, row, thresholds_of
from jobs.comparing import CompareRequest
from jobs.errors import InvalidRequest, JobFailed
from jobs.quality import Report
from tests.service.fake_report import make_report

REPORT_ID = "0" * 32
REQUEST = CompareRequest(
    model="tiny", profiles=("w8a8",), prompts=("a", "b"), seeds=(1,), width=16, height=16,
    num_inference_steps=3, guidance_scale=3.0,
)  # fmt: skip


def report() -> Report:
    return make_report(REQUEST, lambda data, suffix, mime, seed, variant: f"{REPORT_ID}-{'1' * 16}-0.png")


class Gateway:
    """Answers the calls of a comparison, which ends as it is told, and keeps them."""

    def __init__(self, ends: str = "succeeded") -> None:
        self.ends = ends
        self.calls: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.calls.append((request.method, request.url.path, body))
        path = request.url.path
        if path == "/v1/quality/compare":
            assert request.headers["prefer"] == "respond-async" and request.headers["idempotency-key"]
            return httpx.Response(202, json=self.job("queued"))
        if path.endswith("/events"):
            data = json.dumps({"code": "out_of_memory", "message": "m"} if self.ends == "failed" else {})
            return httpx.Response(200, text=f"id: 1-0\nevent: {self.ends}\ndata: {data}\n\n")
        if path == f"/v1/jobs/{REPORT_ID}":
            return httpx.Response(200, json=self.job(self.ends))
        if path == "/v1/quality/reports":
            return httpx.Response(200, json={"data": [self.report(None)], "has_more": False})
        if request.url.params.get("format") == "html":
            return httpx.Response(200, text="<!doctype html>")
        return httpx.Response(200, json=self.report(report().model_dump(mode="json")))

    def job(self, status: str) -> dict[str, Any]:
        used = {
            "model": "tiny", "profile": "compare", "backend": "torch+openvino", "seed": 1, "num_inference_steps": 3,
            "guidance_scale": 3.0, "width": 16, "height": 16, "scheduler": "DDIMScheduler",
        }  # fmt: skip
        error = {"code": "out_of_memory", "message": "ask for less"} if status == "failed" else None
        result = {"files": [], "used": used, "costs": {}} if status == "succeeded" else None
        facts = {"id": REPORT_ID, "kind": "compare", "model": "tiny", "profile": "compare", "created_at": 1.0}
        return facts | {"status": status, "result": result, "error": error}

    def report(self, found: dict[str, Any] | None) -> dict[str, Any]:
        facts = {"id": REPORT_ID, "status": "succeeded", "model": "tiny", "profiles": ["w8a8"], "created_at": 1.0}
        return facts | {"report": found, "a_newer_field": 1}


def test_the_client_submits_waits_and_reads() -> None:
    gateway = Gateway()
    with Client("http://gateway", transport=httpx.MockTransport(gateway)) as client:
        found = client.compare(
            "a", model="tiny", profiles=["w8a8"], seeds=[1], size="16x16", thresholds={"min_ssim": 0.9}
        )
        assert found.report is not None and Report.model_validate(found.report) == report()
        assert client.report_page(REPORT_ID) == "<!doctype html>"
        assert client.reports(limit=1).data[0].report is None
    assert gateway.calls[0] == (
        "POST",
        "/v1/quality/compare",
        {
            "model": "tiny", "profiles": ["w8a8"], "seeds": [1], "thresholds": {"min_ssim": 0.9},
            "width": 16, "height": 16, "prompts": ["a"],
        },
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="32 hexadecimal digits"):
        wire.report_path("../x")


def test_a_failed_comparison_raises_its_failure() -> None:
    with Client("http://gateway", transport=httpx.MockTransport(Gateway("failed"))) as client:
        with pytest.raises(JobFailed, match="ask for less") as caught:
            client.compare(["a", "b"])
        assert caught.value.code == "out_of_memory"


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same() -> None:
    gateway = Gateway()
    async with AsyncClient("http://gateway", transport=httpx.MockTransport(gateway)) as client:
        found = await client.compare(["a", "b"], model="tiny")
        assert found.report is not None and Report.model_validate(found.report) == report()
        assert await client.report_page(REPORT_ID) == "<!doctype html>"
        assert (await client.reports()).data[0].id == REPORT_ID
    assert gateway.calls[0][2] == {"model": "tiny", "prompts": ["a", "b"]}


def test_a_profiles_row_fits_the_columns() -> None:
    cells = dict(zip(COLUMNS, row(report().profiles[0]), strict=True))
    assert (cells["PSNR dB"], cells["identical"], cells["times float's speed"]) == ("30.00", "1 of 2", "2.00")
    same = report().profiles[0].model_copy(update={"psnr_db": None, "identical": 2})
    assert row(same)[2:4] == ["-", "2 of 2"]


def test_thresholds_are_read_and_refused() -> None:
    assert thresholds_of(["min_psnr_db=30", "max_weights_bytes=1000"]) == {
        "min_psnr_db": 30.0,
        "max_weights_bytes": 1000,
    }
    with pytest.raises(InvalidRequest, match="no threshold 'psnr'; there are min_psnr_db"):
        thresholds_of(["psnr=30"])
    with pytest.raises(InvalidRequest, match="must look like"):
        thresholds_of(["min_psnr_db=much"])


@pytest.mark.timeout(240)
def test_without_a_server_it_compares_the_built_in_model(alone: Path) -> None:
    options = [
        "--local",
        "--model",
        "shapes-unet",
        "--profiles",
        "w8a8",
        "--seed",
        "3",
        "--steps",
        "3",
        "--no-temporal",
    ]
    command = ["compare", "a large red circle", *options, "--html", "report.html", "--json"]
    done = CliRunner().invoke(app, [*command, "--require", "min_psnr_db=15"])
    assert done.exit_code == 0, done.output
    found = Report.model_validate_json(done.stdout)
    assert found.profiles[0].psnr_db is not None and found.profiles[0].psnr_db > 15
    assert found.profiles[0].verdict == "passed" and found.settings.seeds == (3,)
    assert found.reference.pictures[0].right is not None, "the shapes world's checker reads the prompt"
    page = (alone / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.count("<img ") == 3
    failed = CliRunner().invoke(app, [*command, "--require", "min_psnr_db=99"])
    assert failed.exit_code == FAILED_STATUS and "min_psnr_db 99" in failed.stdout
