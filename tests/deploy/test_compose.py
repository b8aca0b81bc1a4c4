"""docker-compose.yml and its files: valid by the compose specification, and everything they name exists here."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from jobs.settings import Settings
from service.settings import Settings as GatewaySettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
OURS = ("gateway", "worker", "worker-video", "worker-gpu")
SETTINGS: dict[str, type[Settings]] = {"service": GatewaySettings, "workers": WorkerSettings}

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def module_of(service: Service) -> str:
    """The module that a service's command runs."""
    program, flag, module = service["command"]
    assert (program, flag) == ("python", "-m")
    return str(module)


def variables_of(settings: type[Settings]) -> set[str]:
    """Every environment variable that a settings class reads."""
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        choices = [alias] if isinstance(alias, str) else getattr(alias, "choices", None)
        names |= {str(choice) for choice in choices} if choices else {f"HALFTONE_{name.upper()}"}
    return names


def plain_environment(service: Service) -> dict[str, str]:
    """A service's variables as they are when the operator sets none."""
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in service["environment"].items()}


def docker_instructions(service: Service) -> list[tuple[str, str]]:
    """(instruction, arguments) of a service's Dockerfile, continued lines joined."""
    text = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "deploy/compose-spec.schema.json").read_text(encoding="utf-8"))
    faults = [error.message for error in Draft202012Validator(schema).iter_errors(compose)]
    assert faults == []
    broken = {**compose, "services": {**compose["services"], "redis": {"imagine": "x"}}}
    assert list(Draft202012Validator(schema).iter_errors(broken)), "the schema must refuse unknown keys"


def test_has_the_services_of_the_house(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redis", "gateway", "worker", "worker-video", "worker-gpu", "prometheus"}
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]
    assert compose["services"]["worker-video"]["profiles"] == ["video"]
    assert all("profiles" not in compose["services"][name] for name in ("redis", "gateway", "worker", "prometheus"))


def test_every_service_is_watched_and_restarted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name


def test_only_this_machine_reaches_published_ports(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", OURS)
def test_commands_are_modules_of_the_product(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert importlib.util.find_spec(f"{module_of(service)}.__main__") is not None
    command = next(arguments for instruction, arguments in docker_instructions(service) if instruction == "CMD")
    assert json.loads(command) == service["command"]


@pytest.mark.parametrize("name", OURS)
def test_variables_exist_and_are_accepted(compose: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = compose["services"][name]
    settings = SETTINGS[module_of(service)]
    environment = plain_environment(service)
    assert set(environment) <= variables_of(settings)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    loaded = settings.load()
    assert str(loaded.data) == "/data"
    assert loaded.redis_url is not None and loaded.redis_url.get_secret_value() == "redis://redis:6379/0"


@pytest.mark.parametrize("name", OURS)
def test_data_is_a_shared_volume(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert "data:/data" in service["volumes"]
    assert ("VOLUME", "/data") in docker_instructions(service)
    assert ("USER", "halftone") in docker_instructions(service)


def test_named_volumes_are_declared(compose: dict[str, Any]) -> None:
    mounts = [mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith(".")} == set(compose["volumes"])
    assert [mount for mount in mounts if mount.startswith(".") and not (ROOT / mount).is_file()] == []


def test_ports_agree_everywhere(compose: dict[str, Any]) -> None:
    services = compose["services"]
    gateway, worker = services["gateway"], services["worker"]
    assert gateway["ports"] == [f"127.0.0.1:8000:{gateway['environment']['HALFTONE_PORT']}"]
    assert ("EXPOSE", gateway["environment"]["HALFTONE_PORT"]) in docker_instructions(gateway)
    assert f":{gateway['environment']['HALFTONE_PORT']}/healthz" in gateway["healthcheck"]["test"][-1]
    for name in ("worker", "worker-gpu"):
        port = services[name]["environment"]["HALFTONE_METRICS_PORT"]
        assert ("EXPOSE", port) in docker_instructions(services[name])
        assert f":{port}/metrics" in worker["healthcheck"]["test"][-1]


def test_probed_and_scraped_paths_are_routes_of_the_gateway() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "service").rglob("*.py"))
    assert '"/healthz"' in sources
    assert '"/metrics"' in sources


@pytest.mark.parametrize("name", OURS)
def test_grace_period_is_longer_than_the_drain(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    settings = SETTINGS[module_of(service)]
    default = settings.model_fields["drain_seconds"].default
    drain = float(service["environment"].get("HALFTONE_DRAIN_SECONDS", default))
    assert float(service["stop_grace_period"].removesuffix("s")) > drain


def test_prometheus_scrapes_gateway_and_workers(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text(encoding="utf-8"))
    targets = {
        target
        for job in config["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
        if job["metrics_path"] == "/metrics"
    }
    services = compose["services"]
    expected = {f"gateway:{services['gateway']['environment']['HALFTONE_PORT']}"}
    expected |= {
        f"{name}:{services[name]['environment']['HALFTONE_METRICS_PORT']}"
        for name in ("worker", "worker-video", "worker-gpu")
    }
    assert targets == expected
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    assert "./deploy/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in services["prometheus"]["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_dockerfiles_copy_what_exists(compose: dict[str, Any], name: str) -> None:
    copies = [
        arguments.split()
        for instruction, arguments in docker_instructions(compose["services"][name])
        if instruction == "COPY"
    ]
    sources = [source for *sources, _ in copies for source in sources]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not set(sources) & set(ignored)


@pytest.mark.parametrize("name", ("worker", "worker-gpu"))
def test_worker_images_hold_the_whole_package(compose: dict[str, Any], name: str) -> None:
    copies = {
        arguments.split()[0]
        for instruction, arguments in docker_instructions(compose["services"][name])
        if instruction == "COPY"
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["importlinter"]["root_packages"]) <= copies


def test_gateway_image_holds_all_that_the_gateway_imports(compose: dict[str, Any]) -> None:
    runs = [
        arguments
        for instruction, arguments in docker_instructions(compose["services"]["gateway"])
        if instruction == "RUN" and "--no-deps" not in arguments and "pip install" in arguments
    ]
    installed = {name.split("[")[0].strip("'").lower() for name in runs[0].split("pip install")[1].split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["project"]["dependencies"]}
    assert installed <= declared
    brought_by = {"starlette": "fastapi", "pydantic_core": "pydantic", "anyio": "fastapi", "h11": "uvicorn"}
    distributions = packages_distributions()
    for package in top_level_imports("service") | top_level_imports("jobs"):
        names = {name.lower().replace("_", "-") for name in distributions.get(package, [])} | {
            brought_by.get(package, "")
        }
        assert names & installed, f"{package} is imported but not installed in deploy/Dockerfile.gateway"


def top_level_imports(room: str) -> set[str]:
    """Third-party packages that a room's files import."""
    found: set[str] = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and name not in {"jobs", "service"}}


def test_videos_can_have_a_worker_of_their_own(compose: dict[str, Any]) -> None:
    workers = ("worker", "worker-gpu", "worker-video")
    told = {name: plain_environment(compose["services"][name])["HALFTONE_LANES"] for name in workers}
    lanes = {name: WorkerSettings.model_validate({"lanes": value}).lanes for name, value in told.items()}
    assert lanes == {"worker": ("image", "video"), "worker-gpu": ("image", "video"), "worker-video": ("video",)}
    assert compose["services"]["worker"]["environment"]["HALFTONE_LANES"].startswith("${HALFTONE_LANES:-")
