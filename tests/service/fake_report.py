"""Reports of comparisons whose numbers are made up, for tests of what the gateway does with them."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from jobs.comparing import CompareRequest
from jobs.job import Variant
from jobs.quality import (
    Block,
    Compared,
    FloatReport,
    ProfileReport,
    Report,
    Scores,
    Settings,
    Shown,
    Spent,
    judge_picture,
    judge_profile,
)

Put = Callable[[bytes, str, str, int, Variant], str]
SPENT = Spent(seconds=2.0, step_seconds=0.1, weights_bytes=2**30, peak_bytes=3 * 2**30, activation_bytes=2**20)


def picture(request: CompareRequest, colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (request.width, request.height), colour).save(file, "png")
    return file.getvalue()


def make_report(request: CompareRequest, put: Put) -> Report:
    """Float is red, profiles are green with a grey difference; a profile's first picture is identical with float's."""
    settings = {name: getattr(request, name) for name in Settings.model_fields if name != "scheduler"}
    return Report(
        model=request.model,
        settings=Settings(**settings, scheduler="DDIMScheduler"),
        thresholds=request.thresholds,
        reference=FloatReport(
            backend="torch",
            pictures=tuple(
                Shown(
                    prompt=prompt,
                    seed=seed,
                    file=put(picture(request, (250, 0, 0)), "png", "image/png", seed, "picture"),
                    seconds=2.0,
                    right=True,
                )
                for prompt, seed in request.pairs
            ),
            spent=SPENT,
            prompt_accuracy=1.0,
        ),
        profiles=tuple(_profile(request, name, put) for name in request.profiles),
        not_measured={"lpips": "no weights are configured"},
    )


def _profile(request: CompareRequest, name: str, put: Put) -> ProfileReport:
    pictures = tuple(
        _compared(request, prompt, seed, number, put) for number, (prompt, seed) in enumerate(request.pairs)
    )
    identical = sum(one.scores.identical for one in pictures)
    level = None if identical == len(pictures) else 30.0
    verdict, reasons = judge_profile(pictures, {"speedup": 2.0}, request.thresholds)
    return ProfileReport(
        profile=name,
        backend="openvino",
        verdict=verdict,
        reasons=reasons,
        psnr_db=level,
        worst_psnr_db=level,
        identical=identical,
        ssim=0.99,
        ms_ssim=0.995,
        ms_ssim_scales=1,
        latent_error=0.02,
        trajectory_distance=0.01,
        trajectory=(0.005, 0.01, 0.02),
        temporal_cosine_worst=0.999,
        temporal_cosine_worst_by_step=(0.9995, 0.999, 0.9991),
        mismatch_rate=0.0,
        mismatch_by_step=(0.0, 0.0, 0.0),
        prompt_accuracy=1.0,
        spent=SPENT.model_copy(update={"seconds": 1.0}),
        speedup=2.0,
        quality=Block(
            mean_psnr_db=level,
            identical=identical,
            mean_ssim=0.99,
            mean_lpips=None,
            avg_time_s=1.0,
            speedup=2.0,
            memory_gib=3.0,
            weights_gib=1.0,
            activations_gib=2**-10,
            weights_reduction_percent=0.0,
        ),
        pictures=pictures,
    )


def _compared(request: CompareRequest, prompt: str, seed: int, number: int, put: Put) -> Compared:
    scores = Scores(
        psnr_db=None if number == 0 else 30.0,
        identical=number == 0,
        ssim=0.99,
        ms_ssim=0.995,
        ms_ssim_scales=1,
        latent_error=0.02,
        trajectory_distance=0.01,
        trajectory=(0.005, 0.01, 0.02),
    )
    verdict, reasons = judge_picture(scores, request.thresholds)
    return Compared(
        prompt=prompt,
        seed=seed,
        file=put(picture(request, (0, 250, 0)), "png", "image/png", seed, "picture"),
        seconds=1.0,
        right=number > 0,
        difference=put(picture(request, (90, 90, 90)), "png", "image/png", seed, "difference"),
        difference_scale=8,
        scores=scores,
        verdict=verdict,
        reasons=reasons,
    )
