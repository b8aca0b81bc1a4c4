"""Measures how a profile's pictures scatter about float's, one by one: what a guard later holds traffic against.

Must not know how the profile computes, nor what is done with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

from jobs.profile import FLOAT, Defaults, ProfileCard
from jobs.spread import EQUAL_DB, Anchor, Measured, Point, Spread, log_errors, setting_of, spread_of
from pipelines.calibrate import Progress, batched_range, silent
from pipelines.denoiser import Denoiser
from pipelines.drawing import draw_batch
from pipelines.families import Subject
from pipelines.features import temporal_features
from pipelines.load import Components
from pipelines.probe import Probed
from pipelines.similarity import psnr
from quant.metrics import Features, relative_errors

ANCHORS = 8
"""Pictures of which errors are kept step by step, so that they can be made again."""


def measure_spread(
    components: Components,
    truth: Denoiser,
    denoiser: Denoiser,
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int = 0,
    batch: int = 8,
    progress: Progress = silent,
) -> Spread:
    """Draws every subject by `truth`, which is float, and by `denoiser`, picture i from seed `seed + i`.

    Raises:
        ValueError: there are fewer than two subjects.
        UnsupportedModel: the model cannot draw them at these settings.
    """
    pictures = list(compared(components, truth, denoiser, subjects, defaults, seed=seed, batch=batch, told=progress))
    named = [
        Anchor(prompt=subject, seed=number, call_log_error=tuple(round(e, 5) for e in log_errors(one.call_errors)))
        for number, subject, one in zip(count(seed), subjects, pictures, strict=False)
        if isinstance(subject, str)
    ]
    own = {"anchors": tuple(islice(named, ANCHORS)), "fps": defaults.fps}
    return spread_of(pictures, setting_of(defaults)).model_copy(update=own)


def measure_point(
    components: Components,
    truth: Denoiser,
    denoiser: Denoiser,
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int = 0,
    batch: int = 8,
) -> Point:
    """PSNR at settings of their own."""
    found = compared(components, truth, denoiser, subjects, defaults, seed=seed, batch=batch, probed=False)
    values = tuple(sorted(round(one.psnr_db, 3) for one in found))
    return Point(**setting_of(defaults)._asdict(), psnr_db=values)


def compared(
    components: Components,
    truth: Denoiser,
    denoiser: Denoiser,
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int,
    batch: int = 8,
    probed: bool = True,
    told: Progress = silent,
) -> Iterator[Measured]:
    """Every subject's picture beside float's; without calls' errors unless `probed`."""
    for numbers in batched_range(len(subjects), batch):
        told("spread", numbers.start, len(subjects))
        chosen, seeds = [subjects[number] for number in numbers], [seed + number for number in numbers]
        probe = Probed(truth, {denoiser.name: denoiser} if probed else {}, len(seeds))
        exact = draw_batch(components, probe, chosen, seeds, defaults)
        drawn = draw_batch(components, denoiser, chosen, seeds, defaults)
        latent = relative_errors(drawn.latents[-1], exact.latents[-1]).tolist()
        calls = probe.errors[denoiser.name].errors.tolist() if probed else [[]] * len(seeds)
        for index in range(len(seeds)):
            found = psnr(drawn.pictures[index], exact.pictures[index])
            yield Measured(min(found, EQUAL_DB), latent[index], calls[index])
    told("spread", len(subjects), len(subjects))


def temporal_errors(
    components: Components, card: ProfileCard, subject: Subject, defaults: Defaults
) -> dict[str, tuple[float, ...]]:
    """Relative error of an artifact's temporal features at each step, by module, as its files say; {} where none are.

    Raises:
        UnsupportedModel: the artifact is missing, changed, or of another model.
    """
    found = temporal_features(components, [card], subject, defaults)
    return _errors(found[card.name], found[FLOAT]) if found else {}


def _errors(own: Features, truth: Features) -> dict[str, tuple[float, ...]]:
    return {name: tuple(round(e, 6) for e in relative_errors(own[name], truth[name]).tolist()) for name in truth}
