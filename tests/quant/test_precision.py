"""Step-wise precision: which rows more exact weights compute, by both kinds of them, on batches of mixed steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import jobs.manifest
import quant
from quant.check import check_recipe
from quant.finer import precise_recipe
from quant.precision import PreciseSteps
from quant.recipe import load_recipe, parse
from tests.quant.conftest import make_call, make_empty, make_net

STEPS = 8
COARSE = 'name = "coarse"\n[weights]\nbits = 3\n[activations]\nbits = 6\nsteps = "each"\n[precision]\n'


def clock(*rows: tuple[int, int, int]) -> quant.StepClock:
    """Of (step, total, branch)."""
    return quant.StepClock(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T)


def plan(**changes: Any) -> PreciseSteps:
    return PreciseSteps.model_validate(
        {"form": "float", "first_steps": 1, "last_steps": 2, "total_steps": 25, "weights_bytes": 0} | changes
    )


def precise(steps: PreciseSteps, total: int) -> list[int]:
    """Which steps of a schedule are precise."""
    return steps.rows(clock(*((step, total, 1) for step in range(total)))).nonzero().flatten().tolist()


def test_the_first_and_the_last_steps_are_precise_whatever_the_branch() -> None:
    assert precise(plan(), 25) == [0, 23, 24]
    assert precise(plan(last_steps=0), 25) == [0]
    rows = [(0, 25, quant.COND), (0, 25, quant.UNCOND), (1, 25, quant.COND), (1, 25, quant.UNCOND)]
    assert plan().rows(clock(*rows)).tolist() == [True, True, False, False]


def test_schedules_of_other_lengths_have_at_least_the_same_share() -> None:
    assert precise(plan(), 50) == [0, 1, 46, 47, 48, 49]
    assert precise(plan(), 30) == [0, 1, 27, 28, 29]
    assert precise(plan(), 10) == [0, 9]
    assert precise(plan(), 1) == [0]
    mixed = [(1, 50, 1), (1, 25, 1), (24, 25, 0), (24, 50, 0)]
    assert plan().rows(clock(*mixed)).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[precision]\nform = "float"', "first_steps or last_steps are to be given"),
        ("[precision]\nlast_steps = 2", "first_steps or last_steps are to be given"),
        ('[precision]\nform = "float"\nfirst_steps = -1', "greater than or equal to 0"),
        ('[precision]\nform = "w6a6"\nfirst_steps = 1', "'float' or 'w8a8'"),
        ('[precision]\nform = "w8a8"\nfirst_steps = 1', "no more exact than the recipe"),
        ('scope = "none"\n[precision]\nform = "float"\nfirst_steps = 1', "all steps run by the float weights"),
        ('scope = "temporal"\n[weights]\nbits = 4\n[precision]\nform = "w8a8"\nfirst_steps = 1', 'must be "float"'),
    ],
)
def test_nonsense_is_refused(text: str, fault: str) -> None:
    with pytest.raises(quant.RecipeError, match=fault):
        parse(f'name = "x"\n{text}', "here")


def test_steps_must_be_left_to_the_recipe(net: nn.Module) -> None:
    recipe = parse(COARSE + 'form = "float"\nfirst_steps = 5\nlast_steps = 3', "here")
    with pytest.raises(quant.RecipeError, match="are 8 of 8 steps: none is left"):
        check_recipe(recipe, net, inference_steps=STEPS)
    assert check_recipe(recipe, net, inference_steps=9) == ()
    with pytest.raises(ValidationError, match="25 of 25 steps are precise"):
        plan(first_steps=23)


def test_what_is_more_exact_has_eight_bits_everywhere() -> None:
    recipe = load_recipe("trdq-w4a4")
    finer = precise_recipe(recipe)
    assert {(one.weights.bits, one.activations.bits) for one in finer.schemes} == {(8, 8)}
    assert (finer.rounding.method, finer.temporal.storage, finer.rotation) == ("nearest", "float32", recipe.rotation)
    assert {one.activations.bits for one in precise_recipe(load_recipe("tfmq-w4a32")).schemes} == {32}


def test_precise_steps_leave_the_keys_of_stages_as_they_were() -> None:
    recipe = load_recipe("trdq-w4a8")
    other = recipe.model_copy(update={"precision": parse(COARSE + 'form = "float"\nfirst_steps = 1', "x").precision})
    assert quant.reconstruction_key(other) == quant.reconstruction_key(recipe)


def at_steps(rows: int, seed: int, *, step: int | None = None) -> quant.Call:
    """A call whose timesteps follow from steps; of mixed steps and branches where none is given."""
    steps = torch.arange(rows) % STEPS if step is None else torch.full((rows,), step)
    call = make_call(rows, seed)
    told = quant.StepClock(steps, torch.full((rows,), STEPS), torch.arange(rows) % 2)
    return replace(call, rows={**call.rows, "time": 900 - 100 * steps}, clock=told)


def feed(answer: Callable[[quant.Call], Tensor]) -> None:
    for step in range(STEPS):
        answer(at_steps(6, step, step=step))


def build(folder: Path, form: str) -> quant.Manifest:
    recipe = parse(COARSE + f'form = "{form}"\nfirst_steps = 1\nlast_steps = 2', "here")
    module, statistics = make_net(), quant.calibrate_for(make_net(), feed, recipe)
    finer = quant.make_finer(module, recipe, statistics, quant.Work(quant.Stages(None, "")))
    made = quant.quantize_(module, recipe, statistics)
    about: dict[str, Any] = {"model": "net", "model_sha256": "a" * 64, "calibration": {}, "version": "0"}
    return quant.save(folder, module, made, recipe, **about, finer=finer)


def opened(folder: Path, backend: str) -> quant.Executable:
    manifest = quant.read_manifest(folder)
    quant.verify(folder, manifest)
    options = quant.Options(folder.parent / "cache", threads=1)
    return quant.open_backend(backend, folder, manifest, make_empty, options, make_net)


@pytest.mark.parametrize(("form", "backend"), [("float", "openvino"), ("w8a8", "reference"), ("w8a8", "openvino")])
def test_each_row_of_a_mixed_batch_runs_by_the_weights_of_its_step(tmp_path: Path, form: str, backend: str) -> None:
    manifest = build(tmp_path / "made", form)
    executable, call = opened(tmp_path / "made", backend), at_steps(16, 7)
    truth = quant.call_module(make_net(), call)
    answer = executable.run(call)
    errors = quant.relative_errors(answer, truth)
    fine = plan(form=form, total_steps=STEPS).rows(call.clock)
    assert fine.sum() == 6
    assert errors[fine].max() < (1e-5 if form == "float" else 0.03) and errors[~fine].min() > 0.05
    for step in (0, 3, 6):  # both branches of a step: alone as in company
        rows = (call.clock.step == step).nonzero().flatten()
        assert torch.equal(executable.run(call.take(rows)), answer[rows])
    assert executable.weights_bytes == executable.coarse.weights_bytes + executable.precise.weights_bytes  # type: ignore[attr-defined]
    assert manifest.precision is not None
    own = manifest.weights_bytes - manifest.precision.weights_bytes
    assert 0 < own < 0.3 * manifest.float_weights_bytes
    if form == "float":
        assert manifest.precision.weights_bytes == manifest.float_weights_bytes
    else:
        assert own < manifest.precision.weights_bytes < 0.4 * manifest.float_weights_bytes
    executable.close()
    assert executable.weights_bytes == 0


def test_a_manifest_and_a_card_tell_of_it(tmp_path: Path) -> None:
    made = build(tmp_path / "made", "w8a8")
    card = jobs.manifest.Manifest.read(tmp_path / "made" / "manifest.json").card(tmp_path / "made")
    assert made.precision is not None and card.precision is not None
    assert card.precision.model_dump() == made.precision.model_dump()
    assert card.weights_bytes == made.weights_bytes
    assert {"precise/denoiser.safetensors", "precise/manifest.json"} < made.files.keys()


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "made", "w8a8")
    inner = tmp_path / "made" / "precise" / "manifest.json"
    inner.write_text(inner.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(quant.ArtifactError, match=r"precise/manifest\.json is not the file"):
        opened(tmp_path / "made", "reference")


def test_float_steps_need_the_float_model(tmp_path: Path) -> None:
    manifest = build(tmp_path / "made", "float")
    options = quant.Options(tmp_path / "cache", threads=1)
    with pytest.raises(quant.BackendError, match="runs some steps by the float model"):
        quant.open_backend("reference", tmp_path / "made", manifest, make_empty, options)


def test_room_is_asked_for_with_both_copies_counted(tmp_path: Path) -> None:
    manifest = build(tmp_path / "made", "w8a8")
    asked: list[int] = []

    def grow(held: int, more: int, take: Callable[[], None]) -> bool:
        asked.append(held + more)
        take()
        return True

    options = quant.Options(tmp_path / "cache", threads=1, grow=grow)
    executable = quant.open_backend("openvino", tmp_path / "made", manifest, make_empty, options, make_net)
    first = executable.weights_bytes
    executable.run(at_steps(8, 1))
    assert asked == [first, first]
