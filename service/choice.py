"""Which profile serves a request: by the promise that was asked for, and by the quality guard's verdicts.

Pure policy over cards, the guard's records and what work costs; looks at nothing itself. Knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import InvalidRequest, ProfileFailed, PromiseUnmet
from jobs.guard_record import GuardRecord, Verdict
from jobs.profile import AUTO, FLOAT, ModelCard, ProfileCard
from jobs.promise import Choice, build_bound, contradicted_above, lower_bound
from jobs.request import GenerationRequest, Notice, Parameters
from jobs.spread import setting_of
from service.settings import GuardAction

Records = Mapping[tuple[str, str], GuardRecord]
Estimate = Callable[[GenerationRequest], float | None]
"""Device seconds that a request is expected to take, from jobs that ran here; None where none like it did."""


def promises(parameters: Parameters) -> bool:
    """Whether a request leaves its profile to us.

    Raises:
        InvalidRequest: it names a profile and a promise, or asks for a choice and promises nothing.
    """
    asked = {
        "quality": parameters.quality,
        "deadline_seconds": parameters.deadline_seconds,
        "max_memory_bytes": parameters.max_memory_bytes,
    }
    given = [name for name, value in asked.items() if value is not None]
    if parameters.profile == AUTO and not given:
        raise InvalidRequest(
            "profile: auto needs to know what is wanted: quality.min_psnr_db, deadline_seconds or max_memory_bytes",
            param="profile",
        )
    if given and parameters.profile not in (None, AUTO):
        raise InvalidRequest(
            f"{given[0]}: goes with profile auto, and the profile is {parameters.profile!r}; leave one of both out",
            param=given[0],
        )
    return bool(given)


@dataclass(frozen=True)
class Candidate:
    """A profile for a request: how near to float, how fast, how large. What is not known is None."""

    card: ProfileCard
    psnr_db: float | None  # infinite for float
    seconds: float | None
    evidence: str
    failed: bool = False  # by the guard's verdict: it keeps no promise

    def shortfalls(self, wanted: Parameters) -> dict[str, float]:
        """What it misses, each as a factor above 1; infinite where it is not known."""
        found: dict[str, float] = {}
        if wanted.quality is not None and (self.psnr_db or 0) < wanted.quality.min_psnr_db:
            found["quality"] = math.inf if self.psnr_db is None else wanted.quality.min_psnr_db / self.psnr_db
        if wanted.deadline_seconds is not None and (self.seconds is None or self.seconds > wanted.deadline_seconds):
            found["deadline_seconds"] = math.inf if self.seconds is None else self.seconds / wanted.deadline_seconds
        if wanted.max_memory_bytes is not None and self.card.weights_bytes > wanted.max_memory_bytes:
            found["max_memory_bytes"] = self.card.weights_bytes / wanted.max_memory_bytes
        return found | ({"profile": math.inf} if self.failed else {})

    @property
    def told(self) -> str:
        """In words, for a message."""
        if self.psnr_db is None:
            near = self.evidence if self.failed else "unknown fidelity"
        else:
            near = "float itself" if math.isinf(self.psnr_db) else f"{self.psnr_db:.1f} dB"
        time = "time unknown" if self.seconds is None else f"about {self.seconds:.3g} s"
        return f"{self.card.name} ({near}, {time}, {self.card.weights_bytes} bytes)"


def choose(
    wanted: Parameters,
    request: GenerationRequest,
    model: ModelCard,
    records: Records,
    estimate: Estimate,
    confidence: float,
) -> Choice:
    """The profile for a request that promises something: `request` is decided but for its profile.

    With a promise of quality the fastest profile that keeps all promises; without, the one nearest to float that does.

    Raises:
        PromiseUnmet: none does; the message names the nearest.
    """
    candidates = [_candidate(card, request, model, records, estimate, confidence) for card in model.profiles]
    fit = [one for one in candidates if not one.shortfalls(wanted)]
    if not fit:
        raise _unmet(wanted, candidates, model, confidence)
    chosen = _fastest(fit, request) if wanted.quality is not None else min(fit, key=_farness)
    return Choice(
        profile=chosen.card.name,
        psnr_db=None if chosen.psnr_db is None or math.isinf(chosen.psnr_db) else round(chosen.psnr_db, 2),
        confidence=confidence,
        seconds=chosen.seconds,
        weights_bytes=chosen.card.weights_bytes,
        evidence=chosen.evidence,
    )


def _fastest(fit: Sequence[Candidate], request: GenerationRequest) -> Candidate:
    """By what builds measured, each beside float: what jobs took here also tells who else was here, so it would favour
    whatever ran alone. By jobs where a build measured no time.
    """
    if any(one.card.time_of_float is None for one in fit):
        return min(fit, key=_speed)
    return min(fit, key=lambda one: (_share(one.card, request), one.card.weights_bytes))


def _share(card: ProfileCard, request: GenerationRequest) -> float:
    return (card.time_of_float or math.inf) * _slowed(card, request)


def _slowed(card: ProfileCard, request: GenerationRequest) -> float:
    return card.time_without_plan(request.num_inference_steps, request.guidance_scale)


def _speed(one: Candidate) -> tuple[float, int]:
    return math.inf if one.seconds is None else one.seconds, one.card.weights_bytes


def _farness(one: Candidate) -> tuple[float, float, int]:
    return math.inf if one.psnr_db is None else -one.psnr_db, *_speed(one)


def _candidate(
    card: ProfileCard,
    request: GenerationRequest,
    model: ModelCard,
    records: Records,
    estimate: Estimate,
    confidence: float,
) -> Candidate:
    seconds = expected_seconds(card, request, model, estimate)
    if card.name == FLOAT:
        return Candidate(card, math.inf, seconds, "it is float")
    setting = setting_of(request)
    spread = None if card.fidelity is None else card.fidelity.spread
    bound = build_bound(spread, setting, confidence)
    told = "nothing was measured at these settings" if bound is None else f"{bound:.1f} dB by its build's pictures"
    record = record_of(card, records)
    if record is None:
        return Candidate(card, bound, seconds, told)
    if record.verdict is not Verdict.HEALTHY:
        told = f"the guard's verdict is {record.verdict.value}: {record.reason}"
        return Candidate(card, None, seconds, told, failed=record.verdict is Verdict.FAILED)
    seen = sorted(record.pictures_at(setting))
    traffic = lower_bound(seen, confidence) if bound is None else contradicted_above(seen, confidence)
    if traffic is not None and not math.isinf(traffic):
        bound = traffic if bound is None else min(bound, traffic)
        told += f", {traffic:.1f} dB by {len(seen)} of users'"
    return Candidate(card, bound, seconds, told)


def record_of(card: ProfileCard, records: Records) -> GuardRecord | None:
    """What the guard knows of this very build."""
    record = records.get((card.model, card.name))
    return record if record is not None and record.artifact == card.build else None


def expected_seconds(
    card: ProfileCard, request: GenerationRequest, model: ModelCard, estimate: Estimate
) -> float | None:
    """Device seconds: from jobs of this profile; else from another's, by the builds' ratio; else the build's own."""
    known = estimate(request.model_copy(update={"profile": card.name}))
    if known is not None:
        return known
    own = build_seconds(card, model)
    if own is None:
        return None
    own *= _slowed(card, request)
    for other in model.profiles:
        theirs, known = build_seconds(other, model), estimate(request.model_copy(update={"profile": other.name}))
        if theirs and known is not None:
            return known * own / (theirs * _slowed(other, request))
    return own * request.work / _default_work(request, model)


def build_seconds(card: ProfileCard, model: ModelCard) -> float | None:
    """Seconds of a picture at the model's defaults, as its build, or for float another's, measured."""
    if card.name != FLOAT:
        return None if card.fidelity is None else card.fidelity.seconds
    measured = (other.fidelity.float_seconds for other in model.profiles if other.fidelity is not None)
    return next((seconds for seconds in measured if seconds is not None), None)


def _default_work(request: GenerationRequest, model: ModelCard) -> int:
    usual = model.defaults.model_dump(include={"width", "height", "num_inference_steps", "guidance_scale"})
    if "n" in type(request).model_fields:
        usual["n"] = 1
    if model.defaults.num_frames is not None:
        usual["num_frames"] = model.defaults.num_frames
    return request.model_copy(update=usual).work


def _unmet(wanted: Parameters, candidates: Sequence[Candidate], model: ModelCard, confidence: float) -> PromiseUnmet:
    asked = []
    if wanted.quality is not None:
        asked.append(f"{wanted.quality.min_psnr_db:g} dB in {confidence:.0%} of pictures")
    if wanted.deadline_seconds is not None:
        asked.append(f"{wanted.deadline_seconds:g} s")
    if wanted.max_memory_bytes is not None:
        asked.append(f"{wanted.max_memory_bytes} bytes")
    nearest = min(candidates, key=lambda one: max(one.shortfalls(wanted).values()))
    misses = ", ".join(nearest.shortfalls(wanted))
    return PromiseUnmet(
        f"no profile of {model.id} keeps {' and '.join(asked)} at these settings; the nearest is {nearest.told}, which "
        f"misses {misses}",
        param=next(iter(nearest.shortfalls(wanted))),
    )


def notice_of(choice: Choice) -> Notice:
    """What the answer says of a choice."""
    if choice.psnr_db is None:
        near = "float itself" if choice.profile == FLOAT else "unknown fidelity"
    else:
        near = f"at least {choice.psnr_db:g} dB in {choice.confidence:.0%}"
    time = "" if choice.seconds is None else f", about {choice.seconds:.3g} s"
    message = f"auto chose {choice.profile}: {near}{time}, {choice.weights_bytes} bytes of weights ({choice.evidence})"
    return Notice(code="profile_chosen", message=message)


def guarded(
    card: ProfileCard, model: ModelCard, records: Records, action: GuardAction
) -> tuple[ProfileCard, Notice | None]:
    """The profile that serves where `card` was named, and what is to be said of it.

    Raises:
        ProfileFailed: the guard judged it failed, and such profiles are refused.
    """
    record = record_of(card, records)
    if record is None or record.verdict is not Verdict.FAILED:
        return card, None
    fault = f"profile {card.name} of {card.model} failed the quality guard after {record.comparisons} comparisons: "
    fault += record.reason
    if action == "refuse":
        raise ProfileFailed(f"{fault}. Use another profile, or ask the operator to lift the verdict", param="profile")
    if action == "replace":
        safer = next_safer(card, model, records)
        return safer, Notice(code="profile_replaced", message=f"{fault}. {safer.name} served instead")
    return card, Notice(code="profile_failed", message=fault)


def next_safer(card: ProfileCard, model: ModelCard, records: Records) -> ProfileCard:
    """Of the profiles that no verdict is against, the least faithful that is not less so than `card`; else float."""
    least = -math.inf if card.psnr_db is None else card.psnr_db
    sound = [
        (one.psnr_db, one.weights_bytes, one)
        for one in model.profiles
        if one.name != card.name
        and one.psnr_db is not None
        and one.psnr_db >= least
        and ((record := record_of(one, records)) is None or record.verdict is Verdict.HEALTHY)
    ]
    return min(sound, key=lambda found: found[:2])[2]
