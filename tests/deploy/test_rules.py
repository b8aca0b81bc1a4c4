"""Prometheus rules: promtool's own unit tests where it is at hand; always, that they parse and name series that exist.

promtool comes with Debian's package `prometheus` and is no Python package; $PROMTOOL or PATH says where it is. Without
it nothing here evaluates PromQL, so what rules compute is then not tested.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from jobs.guard_record import empty
from jobs.records import LaneStats, QueueStats
from jobs.request import Priority
from service.metrics import Metrics as GatewayMetrics
from workers.metrics import Metrics as WorkerMetrics

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "rules.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]])
def test_by_promtool(command: list[str]) -> None:
    done = subprocess.run([str(PROMTOOL), *command], cwd=DEPLOY, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_promtool_fails_where_a_rule_says_something_else(tmp_path: Path) -> None:
    for name in ("rules.yml", "rules_test.yml"):
        text = (
            (DEPLOY / name).read_text(encoding="utf-8").replace('{verdict="failed"}) == 1', '{verdict="failed"}) == 0')
        )
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [str(PROMTOOL), "test", "rules", "rules_test.yml"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def exposed() -> set[str]:
    """Every series that gateway and worker can expose."""
    gateway, worker = GatewayMetrics(), WorkerMetrics()
    gateway.guard.show([empty("m", "p", "b", 0.0)])
    zero = dict.fromkeys(Priority, 0)
    lane = LaneStats(depth=zero, oldest_age=dict.fromkeys(Priority, 0.0))
    gateway.queue.show(QueueStats(lanes={"image": lane}), [])
    return {name for registry in (gateway.registry, worker.registry) for name in names_of(registry)}


def names_of(registry: CollectorRegistry) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}


def test_rules_are_of_series_that_exist() -> None:
    known = exposed() | {rule["record"] for rule in rules() if "record" in rule}
    named = {name for rule in rules() for name in re.findall(r"halftone[a-z0-9_:]+", rule["expr"])}
    assert len(named) > 8
    assert named - known == set()


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 5
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_rule_is_under_test() -> None:
    document = (DEPLOY / "rules_test.yml").read_text(encoding="utf-8")
    untested = {name for rule in rules() if (name := rule.get("alert") or rule["record"]) not in document}
    assert untested <= {"halftone:quality_latent_relative_error:p95_1h"}


def test_prometheus_loads_them() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["rules.yml"]
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text(encoding="utf-8"))
    assert "./deploy/rules.yml:/etc/prometheus/rules.yml:ro" in compose["services"]["prometheus"]["volumes"]
