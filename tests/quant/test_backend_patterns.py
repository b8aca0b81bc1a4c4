"""Both backends share attention between branches: as torch does, in pairs, in any company, each at its own time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends import kernels, runtime
from quant.backends.convert import shapes
from quant.backends.openvino import OpenVinoExecutable
from quant.guidance.macs import costs
from quant.guidance.plan import GuidancePlan, GuidanceStep
from quant.guidance.share import Patterns, matching, shared_call

TIMES = (800, 400)


def make_call(name: str, pairs: int, seed: int = 0) -> quant.Call:
    """Unconditional and conditional rows in turn, pairs at either of two times."""
    _, call = tiny_denoiser(name, rows=2 * pairs, seed=seed)
    step = torch.arange(pairs).repeat_interleave(2) % len(TIMES)
    clock = quant.StepClock(step, torch.full_like(step, len(TIMES)), torch.arange(2 * pairs) % 2)
    return replace(call, rows={**call.rows, "timestep": torch.tensor(TIMES)[step]}, clock=clock)


def make_empty(name: str) -> nn.Module:
    module, _ = tiny_denoiser(name)
    for part in module.modules():
        for own, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, own, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return module


class Made(NamedTuple):
    name: str
    folder: Path
    manifest: quant.Manifest

    def opened(self, backend: str, cache: Path) -> quant.Executable:
        options = quant.Options(cache, threads=1)
        return quant.open_backend(backend, self.folder, self.manifest, lambda: make_empty(self.name), options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("pixart-sigma", tmp_path_factory.mktemp("pixart"), ("*attn1", "*"))


def make(name: str, folder: Path, matches: tuple[str, ...], *, maps: bool = False) -> Made:
    """A tiny model with scales for each step and branch, and a plan of sharing patterns."""
    module, _ = tiny_denoiser(name)

    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for seed in range(4):
            answer(make_call(name, 4, seed))

    activations = {"steps": "each", "branches": "each"}
    recipe = quant.Recipe.model_validate(
        {"name": "x", "activations": activations, "temporal": {"maintenance": "cache"}}
    )
    patterns = ((), *(matching(module, [match]) for match in matches))
    result = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    manifest = quant.save(folder, module, result, recipe, model="m", model_sha256="a" * 64, calibration={}, version="0")
    steps = (GuidanceStep(), GuidanceStep(pattern=1))
    told = {"guidance": (1.0, 5.0), "calibrated_guidance": 4.0, "saving": 0.1, "predicted_error": 0.0}
    plan = GuidancePlan(timesteps=TIMES, steps=steps, patterns=patterns, maps=maps, **told)
    return Made(name, folder, manifest.model_copy(update={"guidance": plan}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def agree(made: Made, cache: Path, pattern: int) -> None:
    """Backends differ by less than half of what sharing changes; the reference is as far from torch as 8 bits are."""
    whole = make_call(made.name, 3, seed=9)
    shared = replace(whole, pattern=pattern)
    reference, openvino = made.opened("reference", cache), made.opened("openvino", cache)
    truth = reference.run(shared)
    changed = quant.relative_error(truth, reference.run(whole))
    assert quant.relative_error(openvino.run(shared), truth) < 0.5 * changed < 0.05
    module, _ = tiny_denoiser(made.name)
    assert made.manifest.guidance is not None
    patterns, maps = made.manifest.guidance.patterns, made.manifest.guidance.maps
    assert quant.relative_error(truth, shared_call(module, shared, patterns, maps=maps)) < 0.04


@pytest.mark.parametrize("pattern", [1, 2])
def test_backends_agree_on_what_is_shared(made: Made, cache: Path, pattern: int) -> None:
    agree(made, cache, pattern)


def test_backends_agree_on_attention_that_adds_its_input(tmp_path: Path) -> None:
    agree(make("unet", tmp_path / "made", ("*",)), tmp_path, 1)


def test_backends_agree_on_shared_maps(tmp_path: Path) -> None:
    agree(make("pixart-sigma", tmp_path / "made", ("*attn1",), maps=True), tmp_path, 1)


@pytest.mark.parametrize("backend", quant.BACKENDS)
def test_a_pair_is_the_same_in_any_company(made: Made, cache: Path, backend: str) -> None:
    executable, call = made.opened(backend, cache), replace(make_call(made.name, 5, seed=3), pattern=1)
    together = executable.run(call)
    for rows in ([0, 1], [9, 8], [4, 5, 2, 3], [5, 3, 4, 2]):
        index = torch.tensor(rows)
        assert torch.equal(executable.run(call.take(index)), together[index])


def test_more_pairs_than_a_graph_holds_run_in_parts(made: Made, cache: Path) -> None:
    executable, call = made.opened("openvino", cache), replace(make_call(made.name, 9, seed=4), pattern=1)
    answer = executable.run(call)
    assert torch.equal(answer[16:], executable.run(call.take(torch.tensor([16, 17]))))
    assert torch.equal(answer[:2], executable.run(call.take(torch.tensor([0, 1]))))


def test_a_shared_graph_does_less_and_keeps_its_integer_kernels(made: Made, cache: Path) -> None:
    executable, whole = made.opened("openvino", cache).executable, make_call(made.name, 1)  # type: ignore[attr-defined]
    assert isinstance(executable, OpenVinoExecutable)
    timed = made.opened("openvino", cache)
    assert made.manifest.guidance is not None
    patterns = Patterns(made.manifest.guidance.patterns)
    module, _ = tiny_denoiser(made.name)
    expected = costs(module, whole, patterns).both
    counts, shares = [], []
    for pattern in range(3):
        call = timed.at_its_moment(replace(whole, pattern=pattern))  # type: ignore[attr-defined]
        call = call.take(call.parts(2)[0])
        model = runtime.core().read_model(executable._graph(call))
        model.reshape(shapes(model, call, 2))
        counts.append(kernels.multiply_adds(model))
        shares.append(executable.int8_share(call))
    for pattern in (1, 2):
        assert counts[0] - counts[pattern] == expected[0] - expected[pattern]
        assert shares[pattern] > 0.7


def test_rows_without_a_partner_are_refused(made: Made, cache: Path) -> None:
    call = replace(make_call(made.name, 2), pattern=1)
    for backend in quant.BACKENDS:
        executable = made.opened(backend, cache)
        with pytest.raises(quant.BackendError, match="0 conditional and 1 unconditional rows of 1"):
            executable.run(call.take(torch.tensor([0])))
        with pytest.raises(quant.BackendError, match="no sharing pattern 5; known are 0 to 2"):
            executable.run(replace(call, pattern=5))


def test_patterns_are_compiled_apart() -> None:
    call = make_call("dit", 2)
    assert call.signature() != replace(call, pattern=1).signature()
    patterns = Patterns(((), ("a",), ("a", "b")))
    keys = {patterns.key(replace(call, pattern=pattern)) for pattern in range(3)}
    assert len(keys) == 3
    assert patterns.key(call) == ""
    assert replace(patterns, maps=True).key(replace(call, pattern=1)) not in keys


def test_pairs_are_padded_and_split_as_pairs() -> None:
    call = replace(make_call("dit", 3), pattern=1)  # rows u0 c0 u1 c1 u2 c2
    assert [part.tolist() for part in call.parts(16)] == [[1, 3, 5, 0, 2, 4]]
    assert [part.tolist() for part in call.parts(4)] == [[1, 3, 0, 2], [5, 4]]
    assert [part.tolist() for part in call.parts(1)] == [[1, 0], [3, 2], [5, 4]]
    assert [part.tolist() for part in replace(call, pattern=0).parts(4)] == [[0, 1, 2, 3], [4, 5]]
    halves = call.take(call.parts(16)[0])
    padded = halves.padded(8)
    assert padded.clock.branch.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    latents = halves.rows["hidden_states"]
    assert torch.equal(padded.rows["hidden_states"], latents[[0, 1, 2, 0, 3, 4, 5, 3]])
    assert torch.equal(halves.unpadded(padded.rows["hidden_states"]), latents)
