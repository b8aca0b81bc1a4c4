"""Tables and lines for people: what a profile's guidance plan saves and costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from halftone.evaluation import Evaluation
from halftone.evaluation_files import GUIDANCE as GUIDANCE_PLOT
from halftone.evaluation_files import write_files
from halftone.render import JOB_COLUMNS, PROFILE_COLUMNS, guidance_lines, job_row, precision_lines, profile_row
from halftone.views import JobView, ProfileView
from jobs.profile import Defaults, GuidanceCard

CARD: dict[str, Any] = {
    "name": "tfmq-w8a8-cfg",
    "model": "shapes-unet",
    "backend": "openvino",
    "recipe": "tfmq-w8a8-cfg",
    "weight_bits": 8,
    "activation_bits": 8,
    "weights_bytes": 4_000_000,
    "float_weights_bytes": 16_000_000,
}
GUIDANCE = {
    "saving": 0.364,
    "steps": "NBRRSR",
    "guidance": [1.5, 3.75],
    "calibrated_guidance": 3.0,
    "predicted_error": 0.0062,
    "measured_error": 0.0086,
}


def test_a_profile_tells_its_plan() -> None:
    card = ProfileView.model_validate(CARD | {"guidance": GUIDANCE})
    assert dict(zip(PROFILE_COLUMNS, profile_row(card), strict=True))["guidance left out %"] == "36"
    first, second = guidance_lines(card)
    assert "tfmq-w8a8-cfg of shapes-unet runs NBRRSR" in first
    assert "36.4% of multiply-adds left out" in second and "guidance 1.5 to 3.75" in second
    assert "0.62% expected and 0.86% measured" in second


def test_a_profile_without_one_tells_nothing() -> None:
    card = ProfileView.model_validate(CARD)
    assert dict(zip(PROFILE_COLUMNS, profile_row(card), strict=True))["guidance left out %"] == "-"
    assert guidance_lines(card) == []


def test_a_profile_tells_its_precise_steps() -> None:
    steps = {"form": "float", "first_steps": 1, "last_steps": 2, "total_steps": 25, "weights_bytes": 4_000_000}
    card = ProfileView.model_validate(CARD | {"precision": steps, "weights_bytes": 5_000_000})
    (line,) = precision_lines(card)
    assert "the first 1 and the last 2 of 25 steps by the float model, 4.0 of its 5.0 MB" in line
    assert precision_lines(ProfileView.model_validate(CARD)) == []


def test_an_evaluation_shows_the_plans_of_its_profiles(tmp_path: Path) -> None:
    plan = GuidanceCard.model_validate(GUIDANCE | {"deviations": [0.01, 0.0, 0.01, 0.02, 0.005, 0.01]})
    at = Defaults(width=64, height=64, num_inference_steps=6, guidance_scale=3.0)
    found = Evaluation("shapes-unet", "StableDiffusionPipeline", at, 0, [], [], {}, plans={"tfmq-w8a8-cfg": plan})
    names = {file.name for file in write_files(found, tmp_path)}
    assert GUIDANCE_PLOT in names and (tmp_path / GUIDANCE_PLOT).read_bytes()[:4] == b"\x89PNG"
    assert f"({GUIDANCE_PLOT})" in (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    write_files(replace(found, plans={}), tmp_path)
    assert not (tmp_path / GUIDANCE_PLOT).exists()


def test_a_job_tells_its_prompt_and_a_comparison_all_of_its() -> None:
    facts = {"id": "0" * 32, "status": "queued", "model": "m", "profile": "compare", "created_at": 0.0}
    for request, text in (({"prompt": "a\nb"}, "a b"), ({"prompts": ["a", "b c"]}, "a; b c"), ({}, "")):
        cells = dict(zip(JOB_COLUMNS, job_row(JobView.model_validate(facts | {"request": request})), strict=True))
        assert (cells["prompt"], cells["steps"]) == (text, "-")
