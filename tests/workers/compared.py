"""What tests of comparisons share: a tiny model with a quantized profile and one of a guidance plan, and requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import quant
from jobs.comparing import CompareRequest
from jobs.job import JobResult, new_job_id
from jobs.profile import Defaults
from jobs.quality import Report
from pipelines.order import QuantizationOrder, quantize_folder
from tests.pipelines.one_by_one import step
from tests.workers.kit import DEFAULTS, TINY, TOKEN, Kit, Notes, tiny_settings
from tests.workers.test_guided_jobs import add_profile
from workers.compare import compare
from workers.settings import WorkerSettings
from workers.task import Assignment, Task

PROFILE, PLANNED = "w8a8", "float-cfg"


def settings_with_profiles(root: Path, **changes: Any) -> WorkerSettings:
    """Settings on a tiny model with both profiles."""
    settings = tiny_settings(root, **changes)
    folder = settings.models_dir / TINY
    defaults = Defaults.model_validate(DEFAULTS)
    out = settings.artifacts_dir / TINY / PROFILE
    quantize_folder(QuantizationOrder(folder, out, quant.load_recipe(PROFILE), ["a b", "c"], defaults, TINY))
    add_profile(settings, [step("B"), *[step("R")] * 5], PLANNED)
    return settings


def comparison(**changes: Any) -> CompareRequest:
    """A small request; keyword arguments change fields."""
    fields = {"model": TINY, "profiles": (PROFILE,), "prompts": ("a red box",), "seeds": (1,)}
    return CompareRequest.model_validate(DEFAULTS | fields | changes)


def run(kit: Kit, wanted: CompareRequest, task: Task | None = None, notes: Notes | None = None) -> JobResult:
    """Runs one comparison on this thread."""
    own = task or Task(new_job_id(), TOKEN, wanted.priority)
    return compare(own, Assignment(wanted, kit.store), kit.tools, notes or Notes())


def report_of(kit: Kit, result: JobResult) -> Report:
    """The report that a comparison stored."""
    found = [file for file in result.files if file.variant == "report"]
    assert len(found) == 1
    return Report.model_validate(json.loads(kit.store.path_of(found[0].id).read_bytes()))
