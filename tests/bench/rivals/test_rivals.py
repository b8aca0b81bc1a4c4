"""Rivals: all that can run answer as the float model does, and those that cannot say why."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

import quant
from bench.rivals import CPU, OURS, missing, rival
from bench.rivals.openvino_nncf import OpenVinoNncf
from bench.rivals.ours import PLANNED, Ours
from bench.rivals.torch_runner import TorchRunner
from bench.subjects import Picture, subject

REPOSITORY = Path(__file__).parents[3]
SLOW = ("torch-bf16-compiled", "torchao-int8-compiled")
"""They make code for minutes; their modules are those of the eager ones."""


def test_all_are_known_by_their_names() -> None:
    assert [rival(name).name for name in CPU] == list(CPU)
    assert all(rival(name).note for name in CPU)
    assert [name for name in CPU if isinstance(rival(name), Ours)] == list(OURS)
    with pytest.raises(KeyError, match="no rival 'magic'; there are torch-fp32"):
        rival("magic")


def test_what_is_missing_is_told_with_what_would_help() -> None:
    assert missing("torch", "torch") is None
    assert missing("no_such_package", "it") == "not installed (no module no_such_package); pip install it"


@pytest.mark.filterwarnings("ignore")  # rivals' own
@pytest.mark.parametrize("kind", ["linear-64x32x48", "conv-8x16x8"])
@pytest.mark.parametrize("name", [name for name in CPU if name not in SLOW])
def test_answers_are_near_the_float_models_or_the_reason_is_told(name: str, kind: str, tmp_path: Path) -> None:
    own = rival(name)
    if (why := own.why_not()) is not None:
        assert "pip install" in why
        return
    about = subject(kind, tmp_path)
    work, test = about.work(name, 1), about.test()
    if name == "sdnq-int8":
        with pytest.raises(RuntimeError, match="from folders only"):
            own.open(work)
        return
    own.build(work)
    runner = own.open(work)
    answers = [runner.run(one.call) for one in test]
    errors = [quant.relative_error(answer, one.answer) for answer, one in zip(answers, test, strict=True)]
    assert all(answer.dtype == torch.float32 for answer in answers)
    assert max(errors) < (0.2 if name == "tfmq-w4a8" else 1e-5 if name == "torch-fp32" else 0.05)
    assert torch.equal(runner.run(test[0].call), answers[0])
    assert bool(own.files(work)) == own.builds  # the float form of what is made by code lies nowhere
    runner.close()


def test_nncf_shares_one_graph_and_takes_pairs(root: Path, tmp_path: Path) -> None:
    from bench.rivals.openvino_nncf import _items

    calls = Picture("small-unet@8", root).calibration()
    items = list(_items(calls))
    assert {item.count for item in items} == {2} and len(items) == 2 * len(calls)
    assert items[0].clock.branch.tolist() == [quant.COND, quant.UNCOND]
    both = [one for name in CPU if isinstance(one := rival(name), OpenVinoNncf)]
    assert len(both) == 2
    work = subject("linear-64x32x48", tmp_path)
    folders = {tuple(one.files(work.work(one.name, 1))) for one in both}
    assert folders == {()}


def test_ours_comes_with_the_known_plan_on_the_models_own_schedule(root: Path) -> None:
    about, ours = Picture("small-unet@8", root), rival("tfmq-w8a8")
    assert isinstance(ours, Ours)
    work = about.work(ours.name, 1)
    ours.build(work)
    plan = ours.plan(work)
    assert plan is not None and plan.letters == PLANNED
    assert plan.saving == pytest.approx(17 / 25 / 2)
    assert plan.timesteps == tuple(float(call.timestep[0]) for call in about.calibration() if call.timestep is not None)
    written = (work.folder / quant.MANIFEST).stat().st_mtime_ns
    ours.build(work)
    assert (work.folder / quant.MANIFEST).stat().st_mtime_ns == written
    runner = ours.open(work)
    test = about.test()[3]
    assert quant.relative_error(runner.run(test.call), test.answer) < 0.1
    assert [path.name for path in ours.files(work)].count("denoiser.safetensors") == 1


def test_a_closed_runner_refuses() -> None:
    runner = TorchRunner(torch.nn.Linear(2, 2))
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(quant.Call({"input": torch.zeros(1, 2)}, quant.StepClock.unknown(1)))


def test_gpl_code_is_neither_a_dependency_nor_imported() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert not [one for one in named if one.startswith("sdnq")]
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "bench").rglob("*.py")]
    assert not [source for source in sources if "import sdnq" in source or "from sdnq" in source]
