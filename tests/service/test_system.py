"""Models, profiles, capabilities, health, metrics, and the API's own description."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import Served


def test_models_and_profiles(served: Served) -> None:
    models = served.client.get("/v1/models").json()
    tiny = next(model for model in models["data"] if model["id"] == "tiny")
    assert tiny["profiles"] == ["float", "w8a8"]
    assert tiny["limits"]["max_pixels"] == 2048
    assert tiny["vocabulary"][1] == "red"
    assert served.client.get("/v1/models/tiny").json() == tiny
    profiles = served.client.get("/v1/profiles", params={"model": "tiny"}).json()["data"]
    assert [(p["name"], p["weight_bits"], p["backend"]) for p in profiles] == [
        ("float", 32, "torch"),
        ("w8a8", 8, "openvino"),
    ]
    assert profiles[1]["fidelity"]["psnr_db"] == 40.0
    assert "artifact" not in profiles[1]
    assert [p["pareto"] for p in profiles] == [["bytes"], ["bytes"]], "no seconds were measured"
    assert len(served.client.get("/v1/profiles").json()["data"]) >= 2
    for path in ("/v1/models/none", "/v1/profiles?model=none"):
        answer = served.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_model")
        assert "tiny" in answer.json()["error"]["message"]


def test_capabilities(served: Served) -> None:
    found = served.client.get("/v1/capabilities").json()
    assert found["models"]["tiny"] == ["float", "w8a8"]
    assert found["schedulers"]["tiny"] == "DDIMScheduler"
    assert found["output_formats"] == ["png", "webp", "jpeg"]
    assert found["limits"]["max_body_bytes"] == 262_144


def test_health_and_readiness(served: Served) -> None:
    assert served.client.get("/healthz").json() == {"status": "ok"}
    ready = served.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "READY", "ready": True, "reasons": [], "workers": 1})


def test_without_a_worker_jobs_are_refused_and_it_is_starting(
    make_settings: Callable[..., Settings], serve: Callable[..., Any]
) -> None:
    with serve(make_settings()) as gateway:
        ready = gateway.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "STARTING")
        assert ready.json()["reasons"] == ["no worker is ready"]
        answer = gateway.client.post("/v1/images/generations", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        assert int(answer.headers["retry-after"]) >= 1
        assert gateway.client.get("/v1/jobs").json()["data"] == []


def test_without_redis_it_answers_503(make_settings: Callable[..., Settings], serve: Callable[..., Any]) -> None:
    with serve(make_settings(redis_url="redis://127.0.0.1:1")) as gateway:
        assert gateway.client.get("/healthz").status_code == 200
        assert gateway.client.get("/readyz").json()["status"] == "STARTING"
        for answer in (
            gateway.client.post("/v1/jobs", json={"prompt": "a"}),
            gateway.client.get("/v1/jobs"),
            gateway.client.get(f"/v1/jobs/{'0' * 32}"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert "halftone_redis_up 0.0" in gateway.client.get("/metrics").text


def test_a_full_disk_and_a_full_queue_refuse(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> None:
    settings = make_settings(max_queue=2)
    worker = work(settings)
    worker.taking = False
    worker.start()
    with serve(settings) as gateway:
        codes = [gateway.client.post("/v1/jobs", json={"prompt": "a"}).status_code for _ in range(2)]
        full = gateway.client.post("/v1/jobs", json={"prompt": "a"})
        assert codes == [202, 202]
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(full.headers["retry-after"]) >= 1
        assert 'halftone_jobs_rejected_total{reason="queue_full"} 1.0' in gateway.client.get("/metrics").text
    with serve(settings.model_copy(update={"disk_floor_bytes": 2**62})) as gateway:
        answer = gateway.client.post("/v1/jobs", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    worker.stop()


def test_metrics(served: Served) -> None:
    served.client.post("/v1/images/generations", json={"prompt": "a red circle", "priority": "low"})
    served.client.get("/v1/jobs/" + "0" * 32)
    served.client.get("/nowhere")
    text = served.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["halftone_redis_up"].samples[0].value == 1
    assert {sample.labels["priority"] for sample in families["halftone_queue_depth"].samples} == {
        "high",
        "normal",
        "low",
    }
    assert {sample.labels["lane"] for sample in families["halftone_queue_depth"].samples} == {"image", "video"}
    submitted = {"kind": "image", "model": "tiny", "profile": "float", "priority": "low"}
    assert any(s.labels == submitted and s.value >= 1 for s in families["halftone_jobs_submitted"].samples)
    seen = {(s.labels["route"], s.labels["status"]) for s in families["halftone_http_requests"].samples if s.labels}
    assert {("/v1/images/generations", "200"), ("/v1/jobs/{job_id}", "404"), ("unknown", "404")} <= seen
    assert 'state="ready"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert not re.search(r"[0-9a-f]{32}", text)


def test_openapi_describes_every_route_and_error(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    submits = document["paths"]["/v1/images/generations"]["post"]
    assert {"200", "202", "400", "401", "404", "409", "413", "415", "422", "429", "503", "504"} <= set(
        submits["responses"]
    )
    assert submits["requestBody"]["content"]["application/json"]["examples"]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"] and operation.get("description"), path
            if path.startswith("/v1/"):
                assert {"401", "503"} <= set(operation["responses"]), path
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used <= set(document["components"]["schemas"])
    assert {"ImagesBody", "ImageParameters", "ErrorAnswer", "JobAnswer"} <= used
    assert served.client.get("/docs").status_code == 200
