"""Comparisons in the device child: the same noise through float and each profile, measured, judged and stored."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from jobs.job import JobResult, new_job_id
from jobs.quality import Thresholds
from jobs.request import Priority
from pipelines.media import read_facts
from tests.workers.compared import PLANNED, PROFILE, comparison, report_of, run, settings_with_profiles
from tests.workers.kit import TINY, TOKEN, Kit, Notes, request
from workers.messages import Loaded
from workers.task import JobCanceledSignal, Task


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.rows.GAIN", 0.0)  # batch whether or not it pays for models so small
        made = Kit(settings_with_profiles(tmp_path_factory.mktemp("data")))
        yield made
        made.close()


@pytest.fixture(scope="module")
def result(kit: Kit) -> JobResult:
    return run(kit, comparison(profiles=(PROFILE, PLANNED), prompts=("a red box", "b"), seeds=(1, 7)))


def levels(kit: Kit, file_id: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    with Image.open(io.BytesIO(kit.store.path_of(file_id).read_bytes())) as image:
        return np.asarray(image, dtype=np.float64)


def test_float_draws_what_a_job_of_the_same_seed_draws(kit: Kit, result: JobResult) -> None:
    report = report_of(kit, result)
    for picture in report.reference.pictures:
        job = kit.run(request(prompt=picture.prompt, seed=picture.seed))
        assert np.abs(levels(kit, picture.file) - kit.pictures(job)[0]).max() <= 1
    assert [(one.prompt, one.seed) for one in report.reference.pictures] == [
        *(("a red box", 1), ("a red box", 7), ("b", 1), ("b", 7))
    ]


def test_every_number_belongs_to_its_pictures(kit: Kit, result: JobResult) -> None:
    report = report_of(kit, result)
    assert [one.profile for one in report.profiles] == [PROFILE, PLANNED]
    for one in report.profiles:
        for picture, truth in zip(one.pictures, report.reference.pictures, strict=True):
            assert (picture.prompt, picture.seed) == (truth.prompt, truth.seed)
            scores = picture.scores
            own, wanted = levels(kit, picture.file), levels(kit, truth.file)
            by_hand = 10 * np.log10(255**2 / np.mean((own - wanted) ** 2))
            assert scores.psnr_db == pytest.approx(by_hand, abs=0.5), "files are rounded to 8 bits"
            assert len(scores.trajectory) == 6 and scores.trajectory[-1] == scores.latent_error
            assert scores.ms_ssim_scales == 2 and 0 < scores.ssim < 1
            shown = levels(kit, picture.difference)
            assert np.abs(shown - picture.difference_scale * np.abs(own - wanted)).max() <= picture.difference_scale + 1
            facts = read_facts(kit.store.path_of(picture.file).read_bytes())
            assert facts is not None and (facts["profile"], facts["seed"]) == (one.profile, picture.seed)
        assert one.psnr_db == pytest.approx(np.mean([picture.scores.psnr_db for picture in one.pictures]))
        assert one.trajectory[-1] == pytest.approx(one.latent_error)
        assert one.speedup == pytest.approx(report.reference.spent.seconds / one.spent.seconds)
        assert one.quality.mean_psnr_db == one.psnr_db and one.quality.speedup == one.speedup
        assert one.quality.weights_gib * 2**30 == pytest.approx(one.spent.weights_bytes)
        assert one.spent.peak_bytes > one.spent.activation_bytes >= 0 and one.spent.step_seconds > 0
    quantized, planned = report.profiles
    assert quantized.spent.weights_bytes > 0  # a compiled copy for each number of rows that came: no fixed share
    assert (quantized.guidance_saving, planned.guidance_saving) == (None, 0.25)
    assert quantized.backend == "openvino" and planned.backend == "torch"


def test_temporal_features_are_those_of_the_profile(kit: Kit, result: JobResult) -> None:
    quantized, planned = report_of(kit, result).profiles
    assert quantized.temporal_cosine_worst is not None and 0.9 < quantized.temporal_cosine_worst < 1
    assert len(quantized.temporal_cosine_worst_by_step) == len(quantized.mismatch_by_step) == 6
    assert planned.temporal_cosine_worst == pytest.approx(1) and planned.mismatch_rate == 0, "its layers are float's"
    without = report_of(kit, run(kit, comparison(temporal=False)))
    assert without.profiles[0].temporal_cosine_worst is None and not without.profiles[0].mismatch_by_step
    assert "temporal: false" in without.not_measured["temporal_features"]


def test_the_result_names_files_costs_and_verdicts(kit: Kit, result: JobResult) -> None:
    variants = [file.variant for file in result.files]
    assert (variants.count("picture"), variants.count("difference"), variants.count("report")) == (12, 8, 1)
    assert len({file.id for file in result.files}) == 21
    assert (result.used.profile, result.used.backend, result.used.seed) == ("compare", "torch+openvino", 1)
    assert result.costs.denoiser_calls >= 12 * 6 and result.costs.denoise_seconds > 0 and result.costs.peak_bytes > 0
    assert [one.verdict for one in result.comparison] == ["not judged", "not judged"]


def test_long_work_between_steps_shows_signs_of_life(kit: Kit) -> None:
    notes, quiet = Notes(), Notes()
    run(kit, comparison(), notes=notes)
    run(kit, comparison(temporal=False), notes=quiet)
    assert quiet.signs_of_life >= 1, "scores"
    assert notes.signs_of_life >= quiet.signs_of_life + 2 * 6, "temporal features of float and the profile, 6 steps"


def test_what_cannot_be_measured_is_null_with_the_reason(kit: Kit, result: JobResult) -> None:
    report = report_of(kit, result)
    assert set(report.not_measured) == {"lpips", "clip_score", "prompt_accuracy", "temporal_consistency"}
    assert "HALFTONE_LPIPS_DIR" in report.not_measured["lpips"]
    assert all(one.lpips is one.prompt_accuracy is one.change_error is None for one in report.profiles)


def test_thresholds_judge_every_picture_and_the_whole(kit: Kit) -> None:
    easy = Thresholds(min_psnr_db=5.0, max_latent_error=10.0, min_temporal_cosine=0.5)
    passed = run(kit, comparison(thresholds=easy, profiles=(PROFILE, PLANNED)))
    assert [one.verdict for one in passed.comparison] == ["passed", "passed"]
    hard = Thresholds(min_psnr_db=150.0, min_speedup=1e6)
    failed = report_of(kit, run(kit, comparison(thresholds=hard, seeds=(1, 2)))).profiles[0]
    assert failed.verdict == "failed" and len(failed.reasons) == 3
    assert "seed 2" in failed.reasons[1] and "under min_psnr_db 150" in failed.reasons[1]
    assert "min_speedup" in failed.reasons[2]
    assert [picture.verdict for picture in failed.pictures] == ["failed", "failed"]
    unknown = run(kit, comparison(thresholds=Thresholds(max_lpips=0.1, min_psnr_db=5.0)))
    assert unknown.comparison[0].verdict == "undecided" and "not measured" in unknown.comparison[0].reasons[0]


def test_identical_pictures_have_null_decibels_and_pass(kit: Kit) -> None:
    # the plan does not fit four steps, so float runs in full
    wanted = comparison(profiles=(PLANNED,), num_inference_steps=4, thresholds=Thresholds(min_psnr_db=60.0))
    result = run(kit, wanted)
    one = report_of(kit, result).profiles[0]
    assert one.psnr_db is one.quality.mean_psnr_db is one.worst_psnr_db is None
    assert one.identical == one.quality.identical == 1 and one.verdict == "passed"
    assert one.pictures[0].scores.identical and one.pictures[0].scores.psnr_db is None
    assert one.pictures[0].difference_scale == 1 and levels(kit, one.pictures[0].difference).max() == 0
    assert [notice.code for notice in result.notices] == ["guidance_plan_unused"] and one.guidance_saving == 0


def test_progress_counts_all_pictures(kit: Kit) -> None:
    notes = Notes()
    run(kit, comparison(seeds=(1, 2)), notes=notes)
    assert notes.steps == [(step, 24) for step in range(1, 25)]


def test_a_cancel_ends_it_and_leaves_no_file(kit: Kit) -> None:
    task, notes = Task(new_job_id(), TOKEN, Priority.LOW), Notes()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run(kit, comparison(num_inference_steps=50, seeds=tuple(range(8))), task, notes)
        except JobCanceledSignal as signal:
            caught.append(signal)

    thread = threading.Thread(target=work)
    thread.start()
    while not any(step > 120 for step, _ in notes.steps):  # past the first pair of pictures
        notes.first_step.wait(0.01)
    assert kit.store_files(task.job_id), "something was stored already"
    task.cancel()
    thread.join(20)
    assert len(caught) == 1 and not kit.store_files(task.job_id)


def test_users_jobs_share_its_batches(kit: Kit) -> None:
    done = threading.Event()
    notes = Notes()

    def work() -> None:
        run(kit, comparison(profiles=(PLANNED,), num_inference_steps=50, seeds=(1, 2, 3), temporal=False), notes=notes)
        done.set()

    before = len(kit.batches)
    thread = threading.Thread(target=work)
    thread.start()
    notes.first_step.wait(20)
    kit.run(request(num_inference_steps=20))
    assert not done.is_set(), "the user's job did not wait for the comparison"
    thread.join(60)
    assert any(batch.jobs == 2 and batch.profile == "float" for batch in kit.batches[before:])


def test_background_work_waits_for_it(kit: Kit) -> None:
    notes = Notes()
    thread = threading.Thread(target=run, args=(kit, comparison(num_inference_steps=50)), kwargs={"notes": notes})
    thread.start()
    notes.first_step.wait(20)
    assert not kit.tools.users.wait_alone(0)
    thread.join(60)
    assert kit.tools.users.wait_alone(0)


def test_profiles_opened_to_look_inside_count_as_memory(kit: Kit, result: JobResult) -> None:
    loaded = [message.profile for message in kit.messages if isinstance(message, Loaded)]
    assert f"{PROFILE}@reference" in loaded
    assert (TINY, f"{PROFILE}@reference") in kit.tools.residents.profiles
