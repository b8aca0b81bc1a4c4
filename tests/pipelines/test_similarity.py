"""PSNR, SSIM and MS-SSIM against scikit-image and torchmetrics, and temporal consistency against numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from pipelines.similarity import (
    SCALE_WEIGHTS,
    consistency,
    decibels,
    difference,
    mean_decibels,
    ms_ssim,
    psnr,
    ssim,
)

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Random and real pictures, large and small, of even and odd sides, with noise, blur and other brightness."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((11, 11), (16, 14), (64, 64), (101, 131), (177, 180), (200, 256)):
        x = torch.rand(3, height, width, generator=generator)
        noise = torch.randn(3, height, width, generator=generator)
        yield f"random-{height}x{width}", (x + 0.2 * noise).clamp(0, 1), x
    for name in ("first.png", "shapes-unet.png", "shapes-dit.png"):
        with Image.open(PICTURES / name) as image:
            x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[:, :300, :300].float() / 255
        noise = torch.randn(x.shape, generator=generator)
        yield f"{name}-noise", (x + 0.05 * noise).clamp(0, 1), x
        yield f"{name}-moved", x.roll((1, 2), (1, 2)), x
        yield f"{name}-dark", 0.7 * x, x
        yield f"{name}-inverse", 1 - x, x  # structure below zero


PAIRS = {name: (x, y) for name, x, y in pairs()}


@pytest.mark.parametrize("name", PAIRS)
def test_pictures_compare_as_by_independent_implementations(name: str) -> None:
    x, y = (picture.double() for picture in PAIRS[name])
    first, second = x.numpy(), y.numpy()
    assert psnr(x, y) == pytest.approx(float(peak_signal_noise_ratio(second, first, data_range=1.0)), abs=1e-4)
    wanted = structural_similarity(
        second, first, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(x, y) == pytest.approx(float(wanted), abs=1e-4)
    own = ms_ssim(x, y)
    fit = sum(min(x.shape[1:]) >= 11 * 2**scale for scale in range(5))
    assert own.scales == fit
    weights = SCALE_WEIGHTS if fit == 5 else tuple(weight / sum(SCALE_WEIGHTS[:fit]) for weight in SCALE_WEIGHTS[:fit])
    theirs = multiscale_structural_similarity_index_measure(
        x[None], y[None], data_range=1.0, betas=weights, normalize="relu", kernel_size=11, sigma=1.5
    )
    assert own.value == pytest.approx(float(theirs), abs=1e-4)


def test_five_scales_have_the_published_weights() -> None:
    assert sum(SCALE_WEIGHTS) == pytest.approx(1.0, abs=2e-4)
    x, y = PAIRS["random-177x180"]
    assert ms_ssim(x, y).scales == 5
    assert ms_ssim(x[:, :175], y[:, :175]).scales == 4


def test_equal_pictures_have_no_number_of_decibels() -> None:
    black = torch.zeros(3, 4, 4)
    assert psnr(black, torch.ones(3, 4, 4)) == 0.0
    assert psnr(black, torch.full((3, 4, 4), 0.1)) == pytest.approx(20.0)
    assert psnr(black, black) == math.inf
    assert decibels(math.inf) is None and decibels(31.5) == 31.5
    almost = black.double()
    almost[0, 0, 0] = 1e-7
    assert 150 < psnr(almost, black.double()) < math.inf, "what differs at all has a number"


def test_means_leave_identical_pictures_out_and_count_them() -> None:
    assert mean_decibels([30.0, None, 40.0]) == (35.0, 1)
    assert mean_decibels([None, None]) == (None, 2)
    assert mean_decibels([]) == (None, 0)


def test_pictures_must_be_comparable() -> None:
    with pytest.raises(ValueError, match=r"shapes \[3, 4, 4\] and \[3, 4, 5\] cannot be compared"):
        psnr(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    for metric in (ssim, ms_ssim):
        with pytest.raises(ValueError, match="at least 11 by 11"):
            metric(torch.zeros(3, 8, 16), torch.zeros(3, 8, 16))
        with pytest.raises(ValueError, match="cannot be compared"):
            metric(torch.zeros(3, 32, 32), torch.zeros(3, 32, 33))
    with pytest.raises(ValueError, match="cannot be compared"):
        difference(torch.zeros(3, 4, 4), torch.zeros(3, 5, 4))
    with pytest.raises(ValueError, match="cannot be compared"):
        consistency(torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"videos are \[F, C, H, W\]"):
        consistency(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))


def test_differences_are_amplified_by_what_clips_nothing() -> None:
    x = torch.full((3, 4, 4), 0.5)
    y = x.clone()
    y[1, 2, 3] += 0.03
    shown, scale = difference(y, x)
    assert scale == 32
    assert float(shown[1, 2, 3]) == pytest.approx(0.96, abs=1e-5) and float(shown.sum()) == pytest.approx(
        0.96, abs=1e-5
    )
    assert difference(x, x)[1] == 1 and float(difference(x, x)[0].max()) == 0
    assert difference(torch.ones(3, 2, 2), torch.zeros(3, 2, 2))[1] == 1
    assert difference(x + 1e-6, x)[1] == 256


def test_videos_compare_frame_by_frame() -> None:
    x, y = PAIRS["random-64x64"]
    video, truth = torch.stack([x, y, x]), torch.stack([y, y, y])
    assert ssim(video, truth) == pytest.approx((2 * ssim(x, y) + 1) / 3)
    assert ms_ssim(video, truth).value == pytest.approx((2 * ms_ssim(x, y).value + 1) / 3)
    assert ms_ssim(video, truth).scales == 3
    assert psnr(video, truth) == pytest.approx(psnr(x, y) - 10 * math.log10(2 / 3))


def test_videos_are_held_against_floats_own_changes() -> None:
    truth = torch.zeros(3, 3, 4, 4)
    truth[1, :, 0, 0], truth[2, :, 0, 0] = 0.5, 1.0  # one pixel moves, fifteen stand still
    found = consistency(truth + 0.25, truth)
    assert found is not None
    assert found.change_error == pytest.approx(0, abs=1e-7), "another brightness is no inconsistency"
    assert found.flicker == pytest.approx(0, abs=1e-7) and found.float_flicker == 0
    assert found.still_share == pytest.approx(15 / 16)
    flickering = truth.clone()
    flickering[1, :, 1:] += 0.1
    found = consistency(flickering, truth)
    assert found is not None and found.flicker is not None
    assert found.flicker == pytest.approx(0.1 * 12 / 15)
    assert found.change_error == pytest.approx(math.sqrt(0.01 * 12 / 16))


def test_without_changes_or_still_parts_nothing_is_made_up() -> None:
    assert consistency(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)) is None
    moving = torch.rand(4, 3, 8, 8) + torch.arange(4.0)[:, None, None, None]
    found = consistency(moving, moving)
    assert found is not None
    assert (found.change_error, found.flicker, found.float_flicker, found.still_share) == (0.0, None, None, 0.0)
