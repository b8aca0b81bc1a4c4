"""Profiles' temporal features against float's, summed up by step and in all. Must not know where features come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from jobs.profile import FLOAT
from quant.metrics import Features, temporal_cosines, temporal_mismatches


@dataclass(frozen=True, slots=True)
class TemporalFidelity:
    """What a profile does to temporal features; None and empty where it was not measured.

    Attributes:
        cosine_worst: least cosine with float's over modules and steps; `cosine_mean` over all, `..._by_step` over
            modules at each step of the schedule.
        mismatch_rate: share of (module, step) whose feature is most similar to float's of another step;
            `mismatch_by_step` is the share of modules at each step.
    """

    cosine_worst: float | None = None
    cosine_mean: float | None = None
    cosine_worst_by_step: tuple[float, ...] = ()
    cosine_mean_by_step: tuple[float, ...] = ()
    mismatch_rate: float | None = None
    mismatch_by_step: tuple[float, ...] = ()


NO_TEMPORAL = TemporalFidelity()


def compare_features(features: Mapping[str, Features]) -> dict[str, TemporalFidelity]:
    """Every profile's features [N, width] by module against those of `float`, by profile; none where there are none.

    Raises:
        ValueError: there are features but none of `float`, or they are of other modules or shapes.
    """
    if features and FLOAT not in features:
        raise ValueError(f"temporal features need those of {FLOAT!r} to compare with")
    return {name: _compare(own, features[FLOAT]) for name, own in features.items()}


def _compare(own: Features, truth: Features) -> TemporalFidelity:
    cosines = torch.stack([*temporal_cosines(own, truth).values()])
    wrong = torch.stack([*temporal_mismatches(own, truth).values()]).double()
    return TemporalFidelity(
        cosine_worst=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        cosine_worst_by_step=tuple(cosines.min(dim=0).values.tolist()),
        cosine_mean_by_step=tuple(cosines.mean(dim=0).tolist()),
        mismatch_rate=float(wrong.mean()),
        mismatch_by_step=tuple(wrong.mean(dim=0).tolist()),
    )
