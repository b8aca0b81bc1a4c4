"""A guidance plan over real HTTP: `halftone serve`, the built-in model, a profile that leaves work out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import quant
from bench.service import service
from halftone import Client
from halftone.images import Images
from pipelines.guidance import LETTERS
from pipelines.load import load_components, load_denoiser
from pipelines.quantized import denoiser_sha256
from quant.guidance.alone import save_plan
from quant.recipe_parts import Guidance
from tests.pipelines.one_by_one import by_hand
from zoo.shapes.checker import faults
from zoo.shapes.world import Relation, Scene, Thing

PROMPT = "a large red circle left of a small blue square on a beige background"
SCENE = Scene("beige", (Thing("red", "circle", "large"), Thing("blue", "square", "small")), Relation.LEFT)
MODEL, PROFILE, STEPS = "shapes-unet", "every-second", "BBBBBRBRBRBRBRBRBRBRBRBRB"
FOLDER = Path(__file__).parents[2] / "zoo" / "models" / MODEL


def prepare(data: Path) -> None:
    """Puts the profile where a server looks for it."""
    components = load_components(FOLDER)
    scheduler = components.parts["scheduler"]
    scheduler.set_timesteps(len(STEPS))
    timesteps = [float(timestep) for timestep in scheduler.timesteps]
    plan = by_hand(timesteps, [LETTERS[letter] for letter in STEPS], saving=0.2, measured_error=0.0084)
    recipe = quant.Recipe(name=PROFILE, scope="none", guidance=Guidance(method="given", steps=STEPS))
    sha256 = denoiser_sha256(FOLDER, components.denoiser_part)
    told: dict[str, Any] = {"model": MODEL, "model_sha256": sha256, "calibration": {}, "version": "0"}
    save_plan(data / "artifacts" / MODEL / PROFILE, load_denoiser(components), plan, recipe, **told)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with service(prepare) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=120) as found:
        yield found


def pixels(made: Images) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(Image.open(io.BytesIO(made[0].data)).convert("RGB"))


def codes(made: Images) -> list[str]:
    return [notice.code for notice in made.notices]


def test_the_profile_tells_its_plan(client: Client, url: str) -> None:
    card = next(card for card in client.profiles() if card.name == PROFILE)
    assert card.guidance is not None
    assert (card.guidance.steps, card.guidance.saving, card.guidance.measured_error) == (STEPS, 0.2, 0.0084)
    shown = {row["name"]: row["guidance"] for row in httpx.get(f"{url}/v1/profiles").json()["data"]}
    assert shown["float"] is None
    assert shown[PROFILE]["guidance"] == [1.5, 6.0] and shown[PROFILE]["calibrated_guidance"] == 3.0


def test_pictures_by_the_plan_show_the_prompt_and_are_float_s(client: Client) -> None:
    made = [client.generate(PROMPT, profile=PROFILE, seed=seed) for seed in range(4)]
    assert [faults(pixels(one), SCENE) for one in made].count([]) >= 3
    assert {one.used.guidance_saving for one in made} == {0.2} and not any(map(codes, made))
    exact = client.generate(PROMPT, profile="float", seed=0)
    assert exact.used.guidance_saving is None
    assert 0 < np.abs(pixels(exact).astype(int) - pixels(made[0])).mean() < 2


@pytest.mark.parametrize("fields", [{"num_inference_steps": 9}, {"guidance_scale": 1.0}, {"guidance_scale": 7.5}])
def test_what_it_does_not_fit_is_served_in_full_and_told(client: Client, fields: dict[str, Any]) -> None:
    made = client.generate(PROMPT, profile=PROFILE, seed=1, **fields)
    assert codes(made) == ["guidance_plan_unused"] and made.used.guidance_saving == 0
    assert np.array_equal(pixels(made), pixels(client.generate(PROMPT, profile="float", seed=1, **fields)))


def test_a_negative_prompt_is_told(client: Client) -> None:
    made = client.generate(PROMPT, profile=PROFILE, seed=1, negative_prompt="a blue circle")
    assert codes(made) == ["guidance_plan_negative_prompt"] and made.used.guidance_saving == 0.2


def test_jobs_and_the_images_route_say_the_same(client: Client, url: str) -> None:
    body = {"prompt": PROMPT, "profile": PROFILE, "num_inference_steps": 9, "seed": 1}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).json()
    assert "guidance_plan_unused" in [notice["code"] for notice in answer["halftone"]["notices"]]
    job = client.wait(client.submit(PROMPT, profile=PROFILE, num_inference_steps=9, seed=1).id)
    assert job.result is not None and [notice.code for notice in job.result.notices] == ["guidance_plan_unused"]
