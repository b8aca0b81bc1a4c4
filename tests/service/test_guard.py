"""The quality guard over HTTP: verdicts are shown, acted on and lifted; promises are kept, refused, and explained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from jobs.evidence import Bets
from jobs.guard_record import Comparison
from jobs.manifest import Manifest
from jobs.profile import Fidelity
from jobs.queue import JobQueue
from jobs.spread import Measured, Setting, spread_of
from service.settings import Settings

SETTING = Setting(16, 16, 4, 3.0)
PICTURES = [Measured(38.0 + number / 30, 0.01, (0.01,) * 4) for number in range(128)]


def measured(settings: Settings) -> str:
    """Gives the artifact a spread; its build's name."""
    folder = settings.artifacts_dir / "tiny" / "w8a8"
    manifest = Manifest.read(folder / "manifest.json")
    fidelity = Fidelity(prompts=128, psnr_db=40, ssim=1, seconds=0.1, float_seconds=1)
    raw = manifest.model_dump(mode="json") | {
        "fidelity": fidelity.model_dump() | {"spread": spread_of(PICTURES, SETTING).model_dump(mode="json")}
    }
    (folder / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    return Manifest.model_validate(raw).card(folder).build


@pytest.fixture
def guarded(make_settings: Callable[..., Settings], serve: Any, work: Any) -> Iterator[Callable[..., Any]]:
    with ExitStack() as stack:

        def make(**changes: Any) -> Any:
            settings = make_settings(**changes)
            build = measured(settings)
            worker = work(settings)
            worker.start()
            stack.callback(worker.stop)
            gateway = stack.enter_context(serve(settings))
            gateway.build = build
            return gateway

        yield make


def fail(gateway: Any, comparisons: int = 8) -> None:
    async def compare(queue: JobQueue) -> None:
        for number in range(comparisons):
            await queue.guard.record(
                Comparison(
                    id=f"job-{number}", model="tiny", profile="w8a8", artifact=gateway.build, **SETTING._asdict(),
                    psnr_db=20.0, latent_error=0.2, call_errors=(0.1,) * 4, bets=Bets(call=9.0), elsewhere=False,
                    seconds=0.25,
                )
            )  # fmt: skip

    gateway.ask(compare)


BODY = {"prompt": "a red circle", "profile": "w8a8", "seed": 1}


def test_nothing_compared_is_nothing_known(guarded: Callable[..., Any]) -> None:
    told = guarded().client.get("/v1/quality/guard").json()
    assert (told["data"], told["events"], told["action"]) == ([], [], "report")


def test_a_failed_profile_is_told_refused_or_replaced_and_lifted(guarded: Callable[..., Any]) -> None:
    for action in ("report", "refuse", "replace"):
        gateway = guarded(guard_action=action)
        fail(gateway)
        answer = gateway.client.post("/v1/images/generations", json=BODY)
        if action == "refuse":
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "profile_failed")
            assert "comparisons" in answer.json()["error"]["message"]
        else:
            extras = answer.json()["halftone"]
            code = {"report": "profile_failed", "replace": "profile_replaced"}[action]
            assert [notice["code"] for notice in extras["notices"]] == [code]
            assert extras["used"]["profile"] == {"report": "w8a8", "replace": "float"}[action]
    [card] = gateway.client.get("/v1/quality/guard").json()["data"]
    assert (card["verdict"], card["current"], card["comparisons"], card["device_seconds"]) == ("failed", True, 8, 2.0)
    assert card["psnr_db"]["mean"] == 20 and card["latent_error"]["mean"] == pytest.approx(0.2)
    assert card["build"] == {"psnr_db": 40.0, "pictures": 128}
    assert sum(card["psnr_histogram"]["counts"]) == 8
    text = gateway.client.get("/metrics").text
    assert 'halftone_guard_verdict{model="tiny",profile="w8a8",verdict="failed"} 1.0' in text
    assert 'halftone_guard_comparisons{model="tiny",profile="w8a8"} 8.0' in text
    assert 'halftone_quality_choices_total{model="tiny",profile="float",reason="replaced"} 1.0' in text
    lift = "/v1/quality/guard/tiny/w8a8/lift"
    foreign = gateway.client.post(lift, headers={"Origin": "https://example.org"})
    assert (foreign.status_code, foreign.json()["error"]["param"]) == (400, "Origin")
    lifted = gateway.client.post(lift, headers={"Origin": gateway.url})
    assert (lifted.status_code, lifted.json()["verdict"], lifted.json()["lifts"]) == (200, "healthy", 1)
    extras = gateway.client.post("/v1/images/generations", json=BODY).json()["halftone"]
    assert (extras["used"]["profile"], extras["notices"]) == ("w8a8", [])
    events = gateway.client.get("/v1/quality/guard").json()["events"]
    assert [event["verdict"] for event in events] == ["healthy", "failed", "watch"]


def test_lifting_what_is_not_there(guarded: Callable[..., Any]) -> None:
    client = guarded().client
    for path, status, code in (
        ("tiny/w8a8", 404, "not_found"),
        ("tiny/none", 422, "unknown_profile"),
        ("none/w8a8", 404, "unknown_model"),
    ):
        answer = client.post(f"/v1/quality/guard/{path}/lift")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("route", ["/v1/images/generations", "/v1/jobs"])
def test_auto_chooses_and_says_why(guarded: Callable[..., Any], route: str) -> None:
    gateway = guarded()
    body = {"prompt": "a red circle", "profile": "auto", "quality": {"min_psnr_db": 36}, "deadline_seconds": 5}
    answer = gateway.client.post(route, json=body).json()
    if route == "/v1/jobs":
        choice, profile = answer["request"]["choice"], answer["profile"]
    else:
        choice, profile = answer["halftone"]["choice"], answer["halftone"]["used"]["profile"]
        assert answer["halftone"]["notices"][0]["code"] == "profile_chosen"
    assert profile == choice["profile"] == "w8a8"
    assert choice["psnr_db"] == pytest.approx(38.07) and choice["confidence"] == 0.95
    assert "by its build's pictures" in choice["evidence"]


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"profile": "auto"}, "invalid_request", "auto needs to know"),
        ({"profile": "auto", "quality": {"min_psnr_db": 80}, "deadline_seconds": 0.2}, "promise_unmet", "nearest"),
        ({"profile": "w8a8", "max_memory_bytes": 5}, "invalid_request", "goes with profile auto"),
        ({"profile": "auto", "quality": {"psnr": 30}}, "invalid_request", "quality"),
        ({"profile": "auto", "quality": "high"}, "invalid_request", "quality"),
        ({"profile": "auto", "deadline_seconds": 0}, "invalid_request", "deadline_seconds"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(
    guarded: Callable[..., Any], fields: dict[str, Any], code: str, text: str
) -> None:
    answer = guarded().client.post("/v1/images/generations", json={"prompt": "a red circle"} | fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert text in answer.json()["error"]["message"]


def test_auto_leaves_a_failed_profile_alone(guarded: Callable[..., Any]) -> None:
    gateway = guarded()
    fail(gateway)
    body = {"prompt": "a red circle", "quality": {"min_psnr_db": 30}}
    answer = gateway.client.post("/v1/images/generations", json=body).json()
    assert answer["halftone"]["used"]["profile"] == "float"
