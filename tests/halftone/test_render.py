"""Tables and lines for people: what a profile's guidance plan saves and costs."""

from __future__ import annotations

from typing import Any

from halftone.render import PROFILE_COLUMNS, guidance_lines, profile_row
from halftone.views import ProfileView

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
