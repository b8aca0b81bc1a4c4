"""One picture or video of a profile held against float's: the numbers of a comparison's report.

Must not know how either was drawn, or what a report looks like beyond its scores.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from torch import Tensor

from jobs.quality import Scores
from pipelines.drawing import Drawn
from pipelines.families import UnsupportedModel
from pipelines.fidelity import trajectory_distances
from pipelines.similarity import SMALLEST_SIDE, as_frames, consistency, decibels, ms_ssim, psnr, ssim

Distance = Callable[[Tensor, Tensor], float]
"""How far two pictures [3, H, W] in 0..1 are apart: LPIPS."""


def scores_of(
    drawn: Drawn, truth: Drawn, lpips: Distance | None = None, between: Callable[[], None] = lambda: None
) -> Scores:
    """What sets the one picture or video of `drawn` apart from that of `truth`. `between` is called before each frame;
    it may raise to end this.

    Raises:
        UnsupportedModel: the pictures are too small to compare.
        ValueError: sizes or numbers of steps differ.
    """
    own, wanted = drawn.pictures[0], truth.pictures[0]
    height, width = own.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        side = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise UnsupportedModel(f"pictures of {width}x{height} pixels cannot be compared: SSIM needs at least {side}")
    level, alike = decibels(psnr(own, wanted)), []
    for one, other in zip(as_frames(own), as_frames(wanted), strict=True):
        between()
        alike.append((ssim(one, other), ms_ssim(one, other), 0.0 if lpips is None else lpips(one, other)))
    structure, scaled, distances = zip(*alike, strict=True)
    trajectory = tuple(trajectory_distances(drawn.latents, truth.latents)[0].tolist())
    moving = consistency(own, wanted) if own.ndim == 4 else None
    return Scores(
        psnr_db=level,
        identical=level is None,
        ssim=statistics.fmean(structure),
        ms_ssim=statistics.fmean(one.value for one in scaled),
        ms_ssim_scales=scaled[0].scales,
        lpips=None if lpips is None else statistics.fmean(distances),
        latent_error=trajectory[-1],
        trajectory_distance=statistics.fmean(trajectory),
        trajectory=trajectory,
        change_error=None if moving is None else moving.change_error,
        flicker=None if moving is None else moving.flicker,
        float_flicker=None if moving is None else moving.float_flicker,
    )
