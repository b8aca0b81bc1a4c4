"""Video models become artifacts that draw: tables, scales, rotations, plans, precise steps, for calls by branch.

Wan's pipeline calls its denoiser twice a step, the conditional branch first; the others send both branches at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults
from pipelines.batch import run_together
from pipelines.denoiser import COND, UNCOND, DenoiserCall, TorchDenoiser
from pipelines.load import Components, load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import QuantizedDenoiser, load_quantized
from pipelines.session import DirectSeams, Order, Session
from pipelines.similarity import psnr
from pipelines.tiny_videos import save_tiny_video
from quant.recipe import parse

STEPS = 6
DEFAULTS = Defaults(width=64, height=32, num_inference_steps=STEPS, guidance_scale=3.0, num_frames=9, fps=8)
ORDER = Order("a red box", "", 64, 32, STEPS, 3.0, [5], frames=9, fps=8)
PROMPTS = ["a b", "c d", "e f", "g"]
Family = tuple[Components, TorchDenoiser]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def family(root: Path) -> Callable[[str], Family]:
    def opened(name: str) -> Family:
        folder = root / name if (root / name).is_dir() else save_tiny_video(name, root / name)
        components = load_components(folder)
        return components, TorchDenoiser("float", load_denoiser(components))

    return opened


@pytest.fixture(scope="module")
def made(root: Path) -> Callable[[str, quant.Recipe], Path]:
    """Builds an artifact once."""

    def build(name: str, recipe: quant.Recipe) -> Path:
        out = root / f"{name}-artifacts" / recipe.name
        if not out.is_dir():
            if recipe.learns:
                few = {"iterations": 5, "samples": 32}
                recipe = recipe.model_copy(update={"rounding": recipe.rounding.model_copy(update=few)})
            quantize_folder(QuantizationOrder(root / name, out, recipe, PROMPTS, DEFAULTS))
        return out

    return build


Made = Callable[[str, quant.Recipe], Path]


def opened(artifact: Path, components: Components, backend: str = "reference") -> QuantizedDenoiser:
    card = Manifest.read(artifact / "manifest.json").card(artifact)
    return load_quantized(card, components, quant.Options(artifact.parent / "cache", threads=1), backend=backend)


class Recorder(DirectSeams):
    """Keeps calls and their answers."""

    def __init__(self, denoiser: TorchDenoiser | QuantizedDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []
        self.answers: list[Tensor] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        self.answers.append(super().denoise(call))
        return self.answers[-1]


def draw(components: Components, denoiser: TorchDenoiser | QuantizedDenoiser) -> tuple[Tensor, Recorder]:
    seams = Recorder(denoiser)
    session = Session(components, ORDER, seams, denoiser.guidance)
    video = session.draw()
    assert session.plan_unused is None
    return video, seams


@pytest.mark.parametrize(
    ("name", "recipe", "least"),
    [
        ("wan", "tfmq-w8a8", 55),
        ("wan", "trdq-w8a8", 55),
        ("wan", "trdq-w4a8-cfg", 50),
        ("wan-per-token", "tfmq-w8a8", 55),
        ("ltx", "trdq-w4a8-cfg", 42),
        ("cogvideox-rotary", "tfmq-w8a8", 55),
        ("hunyuan-video", "trdq-w8a8", 45),
    ],
)
def test_a_video_model_is_quantized_and_draws(
    family: Callable[[str], Family], made: Made, name: str, recipe: str, least: float
) -> None:
    components, truth = family(name)
    artifact = made(name, quant.load_recipe(recipe))
    manifest, denoiser = quant.read_manifest(artifact), opened(artifact, components)
    video, seams = draw(components, denoiser)
    assert video.shape == (1, 9, 3, 32, 64)
    assert least < psnr(video, draw(components, truth)[0]) < 100
    assert denoiser.fallbacks == 0
    assert manifest.temporal is not None and manifest.weights_bytes < 0.5 * manifest.float_weights_bytes
    if recipe.endswith("cfg"):
        assert manifest.guidance is not None and manifest.guidance.saving > 0.1
        assert sum(call.rows for call in seams.calls) < 2 * STEPS


@pytest.mark.parametrize(("float_in", "most"), [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_both_backends_agree_on_rows_of_mixed_steps_and_branches(
    family: Callable[[str], Family], made: Made, float_in: str, most: float
) -> None:
    components, truth = family("wan")
    recipe = quant.load_recipe("tfmq-w8a8").model_copy(update={"name": float_in, "float_in": float_in})
    artifact = made("wan", recipe)
    slow, fast = (opened(artifact, components, backend) for backend in ("reference", "openvino"))
    _, seams = draw(components, truth)
    assert [int(call.branch[0]) for call in seams.calls] == [COND, UNCOND] * STEPS
    mixed = [seams.calls[place] for place in (0, 5, 11)]
    together = run_together(fast, mixed)
    for call, own in zip(mixed, together, strict=True):
        assert torch.equal(fast.run(call), own)
        assert quant.relative_error(own, slow.run(call)) < most
        assert 1e-5 < quant.relative_error(own, truth.run(call)) < 0.02
    first = seams.calls[0]
    other = replace(first, branch=torch.full((1,), UNCOND), step=torch.full((1,), 3))
    assert not torch.equal(slow.run(first), slow.run(other))  # scales are the branch's own
    assert fast.fallbacks == 0


def test_a_plan_serves_branches_that_come_one_by_one(family: Callable[[str], Family], made: Made) -> None:
    components, truth = family("wan")
    text = 'name = "given"\n[guidance]\nmethod = "given"\nsteps = "BRBRNR"\n'
    manifest = quant.read_manifest(made("wan", parse(text, "here")))
    plan = manifest.guidance
    assert plan is not None and plan.letters == "BRBRNR" and plan.saving == pytest.approx(4 / 12)
    _, full = draw(components, truth)
    video, planned = draw(components, opened(made("wan", parse(text, "here")), components))
    steps = [(int(call.step[0]), int(call.branch[0])) for call in planned.calls]
    assert steps == [(0, COND), (0, UNCOND), (1, COND), (2, COND), (2, UNCOND), (3, COND), (4, COND), (5, COND)]
    assert len(full.calls) == 12
    assert plan.measured_error is not None and 0 < plan.measured_error < 0.1
    assert torch.isfinite(video).all()


def test_attention_cannot_be_shared_between_calls(family: Callable[[str], Family], root: Path) -> None:
    family("wan")
    text = 'name = "maps"\nscope = "none"\n[guidance]\nmethod = "maps"\nblocks = ["blocks.0.attn1"]\n'
    order = QuantizationOrder(root / "wan", root / "maps", parse(text, "here"), PROMPTS, DEFAULTS)
    with pytest.raises(quant.BackendError, match="each branch in a call of its own: none can share attention"):
        quantize_folder(order)


@pytest.mark.parametrize("form", ["float", "w8a8"])
def test_first_and_last_steps_are_more_exact_in_both_branches(
    family: Callable[[str], Family], made: Made, form: str
) -> None:
    components, truth = family("wan")
    text = (
        f'name = "precise-{form}"\n[weights]\nbits = 3\n[precision]\nform = "{form}"\nfirst_steps = 1\nlast_steps = 1\n'
    )
    denoiser = opened(made("wan", parse(text, "here")), components)
    assert denoiser.precision is not None and denoiser.precision.total_steps == STEPS
    _, seams = draw(components, truth)
    errors = [
        quant.relative_error(denoiser.run(call), answer)
        for call, answer in zip(seams.calls, seams.answers, strict=True)
    ]
    inner = min(errors[2:-2])
    assert max(errors[:2] + errors[-2:]) < (1e-6 if form == "float" else 0.3 * inner)
    assert inner > 0.005


def test_precise_steps_that_leave_none_are_refused_before_any_work(family: Callable[[str], Family], root: Path) -> None:
    family("wan")
    text = 'name = "all"\n[precision]\nform = "float"\nfirst_steps = 4\nlast_steps = 2\n'
    order = QuantizationOrder(root / "wan", root / "all", parse(text, "here"), PROMPTS, DEFAULTS)
    with pytest.raises(quant.RecipeError, match="are 6 of 6 steps: none is left"):
        quantize_folder(order)
