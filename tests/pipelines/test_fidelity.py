"""Fidelity reports: every picture against float's at the same seed, on the way, at the end, and as a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from jobs.profile import Defaults, Fidelity
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.families import UnsupportedModel
from pipelines.fidelity import evaluate, trajectory_distances
from pipelines.load import Components, load_components, load_denoiser
from pipelines.similarity import consistency, psnr, ssim
from pipelines.tiny import save_tiny
from pipelines.tiny_videos import save_tiny_video
from tests.pipelines.promptless import SUBJECTS, save_promptless

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=2, guidance_scale=3.0)
SMALL = Defaults(width=16, height=16, num_inference_steps=3, guidance_scale=1.0)


class Shifted(TorchDenoiser):
    """A denoiser that is off by one percent."""

    def run(self, call: DenoiserCall) -> Tensor:
        return super().run(call) * 1.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stable-diffusion", tmp_path_factory.mktemp("models") / "tiny")


def two(components: Components) -> dict[str, Denoiser]:
    denoiser = load_denoiser(components)
    return {"float": TorchDenoiser("float", denoiser), "off": Shifted("off", denoiser)}


def test_profiles_are_compared_with_float_at_the_same_seed(folder: Path) -> None:
    components = load_components(folder)
    denoisers = two(components)
    told: list[tuple[str, int, int]] = []
    first, second = evaluate(
        components,
        denoisers,
        ["a b", "c"],
        DEFAULTS,
        seed=4,
        checker=lambda prompt, picture: prompt == "c" and picture.shape == (3, 32, 32),
        progress=lambda *facts: told.append(facts),
    )
    assert (first.profile, first.psnr_db, first.identical, first.latent_error) == ("float", None, 2, 0.0)
    assert first.ssim == pytest.approx(1.0) == first.ms_ssim and first.ms_ssim_scales == 2
    assert [(row.psnr_db, row.identical) for row in first.each] == [(None, True), (None, True)]
    assert second.profile == "off"
    assert second.psnr_db is not None and 20 < second.psnr_db < 70
    assert second.identical == 0 and second.ssim < second.ms_ssim < 1
    assert 0.001 < second.latent_error < 0.1
    assert [row.seed for row in second.each] == [4, 5]
    assert second.prompt_accuracy == second.float_prompt_accuracy == 0.5
    assert second.weights_bytes == denoisers["off"].weights_bytes
    assert told[-1] == ("comparing", 4, 4)
    assert Fidelity(**second.summary()).trajectory_distance == second.trajectory_distance
    assert json.loads(json.dumps(second.as_json()))["each"][1]["prompt"] == "c"
    assert second.frechet is second.temporal_cosine_worst is second.mismatch_rate is None


def test_the_trajectory_is_the_distance_after_every_step(folder: Path) -> None:
    components = load_components(folder)
    denoisers = two(components)
    found = evaluate(components, denoisers, ["a", "b", "c"], DEFAULTS, seed=1)[1]
    drawn, truth = (draw_batch(components, one, ["b"], [2], DEFAULTS) for one in reversed(denoisers.values()))
    by_hand = [
        float((x.double() - y.double()).norm() / y.double().norm())
        for x, y in zip(drawn.latents, truth.latents, strict=True)
    ]
    assert list(found.each[1].trajectory) == pytest.approx(by_hand, rel=1e-3)
    assert found.trajectory == pytest.approx([sum(row.trajectory[k] for row in found.each) / 3 for k in range(2)])
    assert found.trajectory_distance == pytest.approx(sum(found.trajectory) / 2)
    assert found.latent_error == pytest.approx(found.trajectory[-1])
    assert 0 < found.trajectory[0] < found.trajectory[1], "errors add up"
    with pytest.raises(ValueError, match="2 and 1 steps"):
        trajectory_distances(truth.latents, truth.latents[:1])


@pytest.mark.parametrize("name", ["stable-diffusion", "ddpm", "dit", "dit-guided"])
def test_batches_of_any_size_compare_the_same_pictures(name: str, folder: Path, tmp_path: Path) -> None:
    known = name == "stable-diffusion"
    components = load_components(folder if known else save_promptless(name, tmp_path / name))
    subjects: list[Any] = ["a", "b c", "d"] if known else [*SUBJECTS[name], SUBJECTS[name][0]]
    defaults = DEFAULTS if known else SMALL.model_copy(update={"guidance_scale": 4.0 if name == "dit-guided" else 1.0})
    pictures: dict[int, list[Tensor]] = {1: [], 3: []}
    rows = {}
    for batch, kept in pictures.items():

        def keep(profile: str, number: int, picture: Tensor, kept: list[Tensor] = kept) -> None:
            if profile == "float":
                assert number == len(kept)
                kept.append(picture)

        rows[batch] = evaluate(components, two(components), subjects, defaults, batch=batch, on_picture=keep)
    for alone, together in zip(pictures[1], pictures[3], strict=True):
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)
    assert rows[1][1].trajectory == pytest.approx(rows[3][1].trajectory, rel=1e-2)
    assert rows[1][1].psnr_db == pytest.approx(rows[3][1].psnr_db, abs=0.2)
    assert [row.prompt for row in rows[3][1].each] == subjects
    assert rows[3][1].identical == 0


class FirstPixels:
    """A reference whose distance is the number of pictures it saw, and whose features are pixels."""

    def features(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, :2]

    def distance(self, features: Tensor) -> float:
        assert features.shape == (3, 2)
        return float(len(features))


def test_whole_sets_are_held_against_a_reference(folder: Path) -> None:
    components = load_components(folder)
    rows = evaluate(components, two(components), ["a", "b", "c"], DEFAULTS, batch=2, reference=FirstPixels())
    assert [row.frechet for row in rows] == [3.0, 3.0]


def test_temporal_features_are_summed_up_by_step(folder: Path) -> None:
    components = load_components(folder)
    truth = {"a": torch.eye(3), "b": torch.eye(3)}
    wrong = torch.eye(3)
    wrong[1] = torch.tensor([0.8, 0.6, 0.0])  # says step 0, at cosine 0.6 with its own
    features = {"float": truth, "off": {"a": torch.eye(3) * 2, "b": wrong}}
    first, second = evaluate(components, two(components), ["a"], DEFAULTS, features=features)
    assert first.temporal_cosine_worst == pytest.approx(1.0)
    assert first.mismatch_rate == 0.0
    assert second.temporal_cosine_worst == pytest.approx(0.6)
    assert second.temporal_cosine_worst_by_step == pytest.approx((1.0, 0.6, 1.0))
    assert second.temporal_cosine_mean_by_step == pytest.approx((1.0, 0.8, 1.0))
    assert second.temporal_cosine_mean == pytest.approx(5.6 / 6)
    assert second.mismatch_by_step == (0.0, 0.5, 0.0)
    assert second.mismatch_rate == pytest.approx(1 / 6)
    assert Fidelity(**second.summary()).mismatch_rate == second.mismatch_rate
    with pytest.raises(ValueError, match="need those of 'float'"):
        evaluate(components, two(components), ["a"], DEFAULTS, features={"off": truth})


def test_old_manifests_stay_valid() -> None:
    fidelity = Fidelity.model_validate({"prompts": 256, "psnr_db": 33.0, "ssim": 0.98})
    assert fidelity.trajectory_distance is fidelity.seconds is None


def test_there_must_be_something_to_compare_with(folder: Path, tmp_path: Path) -> None:
    components = load_components(folder)
    with pytest.raises(ValueError, match="needs a denoiser named 'float'"):
        evaluate(components, {}, ["a"], DEFAULTS)
    tiny = DEFAULTS.model_copy(update={"width": 8, "height": 32})
    with pytest.raises(UnsupportedModel, match="8x32 pixels cannot be compared"):
        evaluate(components, two(components), ["a"], tiny)


def test_relative_errors_are_those_of_the_library(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    found = trajectory_distances([one, other], [other, other])
    assert found.shape == (2, 2)
    assert found[:, 1].tolist() == [0.0, 0.0]
    assert found[1, 0].item() == pytest.approx(quant.relative_error(one[1], other[1]))


def test_videos_are_compared_frame_by_frame_and_by_their_changes(tmp_path: Path) -> None:
    components = load_components(save_tiny_video("wan", tmp_path / "wan"))
    at = Defaults(width=32, height=32, num_inference_steps=2, guidance_scale=3.0, num_frames=5, fps=8)
    denoisers, seen = two(components), dict[tuple[str, int], Tensor]()
    float_, off = evaluate(
        components,
        denoisers,
        ["a b", "c"],
        at,
        checker=lambda prompt, video: video.shape == (5, 3, 32, 32),
        on_picture=lambda profile, number, video: seen.update({(profile, number): video}),
    )
    assert (float_.identical, float_.change_error, off.prompt_accuracy) == (2, 0.0, 1.0)
    truth, own = seen["float", 1], seen["off", 1]
    assert off.each[1].psnr_db == pytest.approx(psnr(own, truth))
    assert off.each[1].ssim == pytest.approx(sum(ssim(own[i], truth[i]) for i in range(5)) / 5)
    changes = [consistency(seen["off", i], seen["float", i]) for i in range(2)]
    assert None not in changes and off.each[1].consistency == changes[1]
    assert off.change_error == pytest.approx(sum(one.change_error for one in changes if one) / 2)
    assert Fidelity.model_validate(off.summary()).change_error == off.change_error
    assert json.loads(json.dumps(off.as_json()))["each"][0]["consistency"]["still_share"] >= 0
