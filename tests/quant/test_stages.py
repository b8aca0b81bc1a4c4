"""Stages: whole or not there, of this build or not taken, and their time is remembered."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from quant.stages import Stages

TENSORS = {"a.b": torch.arange(6, dtype=torch.int8).view(2, 3), "loss": torch.tensor(0.25, dtype=torch.float64)}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    Stages(tmp_path / "new", "key").save("weights.up/0 x", TENSORS, 1.5)
    later = Stages(tmp_path / "new", "key")
    loaded = later.load("weights.up/0 x")
    assert loaded is not None
    assert loaded.keys() == TENSORS.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert later.seconds("weights.up/0 x") == later.resumed_seconds == 1.5
    later.save("other", {"x": TENSORS["a.b"].t()}, 2.0)
    assert (later.total_seconds, later.resumed_seconds) == (3.5, 1.5)
    assert torch.equal((later.load("other") or {})["x"], TENSORS["a.b"].t())


def test_what_was_not_saved_is_to_be_done(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "new", "key")
    assert stages.load("weights") is None
    assert stages.total_seconds == 0.0
    with pytest.raises(KeyError):
        stages.seconds("weights")


def test_stages_of_another_build_are_told_and_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Stages(tmp_path, "one").save("weights", TENSORS, 1.0)
    with caplog.at_level(logging.WARNING):
        assert Stages(tmp_path, "two").load("weights") is None
    assert "belongs to another build; the stage is done again" in caplog.text


@pytest.mark.parametrize("kept", [0, 5, -7])
def test_broken_files_are_told_and_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int) -> None:
    stages = Stages(tmp_path, "key")
    stages.save("weights", TENSORS, 1.0)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    with caplog.at_level(logging.WARNING):
        assert Stages(tmp_path, "key").load("weights") is None
    assert "cannot be read" in caplog.text
    stages.save("weights", TENSORS, 1.0)
    assert Stages(tmp_path, "key").load("weights") is not None


def test_without_a_folder_only_time_is_kept() -> None:
    stages = Stages(None, "key")
    stages.save("weights", TENSORS, 1.0)
    assert stages.load("weights") is None
    assert stages.total_seconds == 1.0
    stages.discard()


def test_a_finished_build_leaves_nothing(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "stages", "key")
    stages.save("weights", TENSORS, 1.0)
    stages.discard()
    stages.discard()
    assert list(tmp_path.iterdir()) == []
