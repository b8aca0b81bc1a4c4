"""The table of videos: its rows, what it sees on films, a row from folder to page, and what the page says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quant
from bench import video, video_report
from bench.cpu_cells import Size
from bench.subjects import BadSubject, BuiltIn, both_branches, subject
from bench.video_films import Judged
from bench.video_rows import BASES, METHODS, rows
from pipelines import calibrate
from pipelines.tiny_videos import save_tiny_video
from quant.check import check_recipe
from zoo.accuracy import as_bytes
from zoo.build import open_folder
from zoo.shapes.film import film
from zoo.shapes.motion import Motion, MovingScene
from zoo.shapes.motion_checker import film_faults
from zoo.worlds import Asked

DEFAULTS: dict[str, Any] = {
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "num_frames": 5,
    "fps": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of shapes-video's layout, where subjects are looked for."""
    made = save_tiny_video("wan", tmp_path_factory.mktemp("video") / "models" / "tiny-video")
    (made / "halftone.json").write_text(json.dumps({"defaults": DEFAULTS}), encoding="utf-8")
    return made


def test_every_row_has_a_recipe_of_its_bits_that_fits_the_model(folder: Path) -> None:
    found = rows(iterations=3)
    assert len({row.name for row in found}) == len(found) == 9
    skeleton = open_folder(folder).components.skeleton
    for row in found:
        assert (row.recipe.weights.bits, row.recipe.activations.bits) == row.bits
        assert not row.recipe.learns or row.recipe.rounding.iterations == 3
        check_recipe(row.recipe, skeleton)
    assert [row.recipe for row in rows()] == [
        quant.load_recipe(name) for one in BASES.values() for name in one.values()
    ]


def test_films_are_judged_by_thing_motion_and_what_is_still() -> None:
    scene = MovingScene("black", "red", "square", Motion.LEFT)
    true = torch.from_numpy(film(scene, np.random.default_rng(0))).permute(0, 3, 1, 2) / 255
    asked = [Asked("x", lambda shown: film_faults(as_bytes(shown), scene)) for _ in range(2)]
    noisy = (true + 0.02 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    judged = Judged(asked)
    for number in range(2):
        judged.see("float", number, true)
    judged.see("other", 0, true.flip(0))  # moves right
    judged.see("other", 1, noisy)
    truth, other = judged.told("float"), judged.told("other")
    assert (truth["thing_accuracy"], truth["motion_accuracy"], truth["still_change"]) == (1.0, 1.0, 0.0)
    assert (other["films"], other["thing_accuracy"], other["motion_accuracy"]) == (2, 1.0, 0.5)
    assert 0.5 < other["still_change"] < 5


def test_a_row_goes_from_a_folder_to_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [row for row in rows(2) if row.name in ("rtn-w8a8", "trdq-w4a8-cfg")]
    monkeypatch.setattr(video, "rows", lambda iterations: chosen)
    monkeypatch.setattr(video_report, "OUT", tmp_path / "results")
    beside = Size(subjects=(), rivals=(), threads=1, root=tmp_path / "beside")
    size = video.Video(folder, 2, 3, 2, 2, beside, tmp_path / "work")
    video.run(size)
    document = json.loads((tmp_path / "results" / "video.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in document["rows"]] == ["rtn", "trdq + cfg"]
    for row in document["rows"]:
        assert row["films"] == row["prompts"] == 2 and row["psnr_db"] > 20
        assert 0 < row["seconds"]["step"] < row["seconds"]["total"]
        assert 0 < row["bytes"] < 0.5 * document["float"]["bytes"]
    page = (tmp_path / "results" / "video.md").read_text(encoding="utf-8")
    assert "| trdq + cfg |" in page and "2 of 9 rows" in page
    assert (tmp_path / "results" / "video.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(video, "quantize_folder", None)  # nothing is made twice
    video.run(size)


def test_a_shipped_artifact_is_taken_where_the_row_would_make_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in rows() if row.name == "rtn-w8a8")
    monkeypatch.setattr(video, "SHIPPED", tmp_path / "shipped")
    size = video.Video(folder, 2, 3, 2, work=tmp_path / "work")
    made = video._artifact(row, size, calibrate.silent)
    assert made == tmp_path / "work" / "artifacts" / "rtn-w8a8"
    shipped = tmp_path / "shipped" / folder.name / row.name
    shipped.parent.mkdir(parents=True)
    made.rename(shipped)
    other = replace(size, observed=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(video, "quantize_folder", lambda order, progress: None)
        assert video._artifact(row, other, calibrate.silent) != shipped  # calibrated on others
    monkeypatch.setattr(video, "quantize_folder", lambda order, progress: pytest.fail("was made again"))
    assert video._artifact(row, size, calibrate.silent) == shipped


def test_a_built_in_model_is_a_subject_whose_calls_have_both_branches(folder: Path) -> None:
    about = subject("tiny-video", folder.parent.parent)
    assert isinstance(about, BuiltIn) and about.home is None
    about.prepare()
    test = about.test()
    assert [one.call.clock.branch.tolist() for one in test] == [[1, 0]] * 2
    assert [call.count for call in about.calibration()] == [4, 4]
    assert list(both_branches(test)) == test
    module = about.work("x", 1).load()
    assert quant.relative_error(quant.call_module(module, test[1].call), test[1].answer) < 1e-5
    with pytest.raises(BadSubject, match="no subject 'nothing'"):
        subject("nothing", folder.parent.parent)


def test_the_page_tells_rows_rivals_and_verdict() -> None:
    machine = {"processor": "a processor", "date": "2026-01-01"}
    facts = {"model": "shapes-video", "prompts": 4, "observed_prompts": 1, "calibration_prompts": 2, "machine": machine}
    facts |= {"defaults": DEFAULTS, "rounds": 3, "threads": 1}
    numbers: dict[str, Any] = {"ssim": 0.9, "change_error": 0.01, "still_change": 0.2, "saving": None, "bytes": 1e6}
    numbers |= dict.fromkeys(("thing_accuracy", "motion_accuracy", "prompt_accuracy"), 0.9)
    seconds = {"seconds": {"step": 0.1, "total": 3.0}, "float_seconds": {"step": 0.2, "total": 5.0}}
    found = [{"method": row.method, "bits": list(row.bits), "psnr_db": 40.0, **numbers, **seconds} for row in rows()]
    truth = {**numbers, "bytes": 4e6, "motion_accuracy": 0.92, "psnr_db": None}
    calls = {"tfmq-w8a8": [0.1], "trdq-w8a8": [0.2], "openvino-nncf-int8": [0.15], "openvino-nncf-int8-f32": [0.3]}
    ran: list[dict[str, Any]] = [
        {"rival": name, "call_seconds": took, "call_error": 0.01} for name, took in calls.items()
    ]
    beside: list[dict[str, Any]] = [
        {
            "subject": "shapes-video",
            "rows": [*ran, {"rival": "torch-fp32", "failed": "broke"}],
            "absent": {"x": "gone"},
        },
        {"subject": "video-5x16", "rows": ran[:2], "absent": {}},
    ]
    page = video_report.markdown(facts, truth, found, beside)
    assert all(f"| {method} |" in page for method in ("float", *METHODS))
    assert "tfmq W8A8: +2.0 points of accuracy lost at most, of thing, motion and all (aim at most 1: missed)" in page
    assert "shapes-video: tfmq-w8a8 is 1.50x as fast as openvino-nncf-int8 (aim: faster: met)" in page
    assert "- torch-fp32 did not run: broke" in page and "- x did not run: gone" in page
    assert "video-5x16: NNCF did not run, or ours did not." in page
    assert replace(video.Video(), prompts=1).beside.subjects == ("shapes-video", "video-5x16")
