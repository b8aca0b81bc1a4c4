"""Subjects: what names mean, and that all rivals get the float model's own calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quant
from bench.made import Layer, Video
from bench.subjects import STEPS, BadSubject, Picture, subject


def test_names(tmp_path: Path) -> None:
    linear, convolution = subject("linear-64x32x48", tmp_path), subject("conv-8x16x4", tmp_path)
    assert isinstance(linear, Layer) and isinstance(convolution, Layer)
    assert (linear.kind, linear.sizes, linear.multiply_adds()) == ("linear", (64, 32, 48), 64 * 32 * 48)
    assert convolution.multiply_adds() == 2 * 9 * 8 * 16 * 4 * 4
    picture = subject("sd15@64", tmp_path)
    assert isinstance(picture, Picture) and picture.home == Picture("sd15@32", tmp_path)
    assert (picture.defaults.width, picture.side, picture.model) == (512, 64, "sd15")
    assert Picture("sd15@16", tmp_path).home is None
    video = subject("small-video-3x8", tmp_path)
    assert isinstance(video, Video) and (video.frames, video.side, video.small) == (3, 8, True)


@pytest.mark.parametrize("name", ["sd15", "sd99@32", "linear-63x32x48", "conv-8x8", "video-3"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "sd15").mkdir(parents=True)  # as sd15@64 leaves it
    with pytest.raises(BadSubject, match=name):
        subject(name, tmp_path)


def test_calls_of_pictures_are_the_float_models(root: Path) -> None:
    about = Picture("small-unet@8", root)
    calibration, test = about.calibration(), about.test()
    assert len(calibration) == len(test) == STEPS
    assert {call.count for call in calibration} == {4} and {one.call.count for one in test} == {2}
    assert test[0].call.clock.branch.tolist() == [quant.UNCOND, quant.COND]
    module = about.work("torch-fp32", 1).load()
    with torch.no_grad():
        assert quant.relative_error(quant.call_module(module, test[7].call), test[7].answer) < 1e-5
    assert test[0].call.rows["encoder_hidden_states"].shape == (2, 77, 32)
    assert about.latents().shape == (1, 4, 8, 8)


@pytest.mark.parametrize("name", ["small-unet@8", "small-pixart@8"])
def test_latents_neither_grow_nor_vanish(name: str, root: Path) -> None:
    about = Picture(name, root)
    about.prepare()
    assert 0.3 < float(about.latents().std()) < 3


@pytest.mark.parametrize("name", ["linear-64x32x48", "conv-8x16x4", "small-video-3x8"])
def test_calls_made_by_code_are_repeatable(name: str, tmp_path: Path) -> None:
    first, again = subject(name, tmp_path).test(), subject(name, tmp_path).test()
    assert torch.equal(first[0].answer, again[0].answer) and not torch.equal(first[0].answer, first[1].answer)
    assert {call.signature() for call in subject(name, tmp_path).calibration()} == {first[0].call.signature()}
    work = subject(name, tmp_path).work("torch-fp32", 1)
    assert {one.shape for one in work.empty().parameters()} == {one.shape for one in work.load().parameters()}
    assert all(one.is_meta for one in work.empty().parameters())
