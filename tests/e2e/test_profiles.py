"""All profiles of built-in models of pictures over real HTTP, switched request by request, each with its numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.service import service
from halftone import Client
from zoo.build import SHIPPED

PROMPT = "a large red circle left of a small blue square on a beige background"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with service() as port, Client(f"http://127.0.0.1:{port}", timeout=240) as found:
        yield found


def psnr(one: bytes, other: bytes) -> float:
    first, second = (np.array(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64) for data in (one, other))
    error = float(np.square(first - second).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", [model for model in SHIPPED if model != "shapes-video"])
def test_every_profile_serves_in_turn_and_comes_back_the_same(client: Client, model: str) -> None:
    cards = {card.name: card for card in client.profiles() if card.model == model}
    assert set(cards) == {"float", *SHIPPED[model]}
    for name in SHIPPED[model]:
        fidelity: Any = cards[name].fidelity
        assert fidelity.prompts >= 256 and fidelity.psnr_db >= 30 and fidelity.seconds > 0
    first: dict[str, bytes] = {}
    for name in (*cards, *reversed(cards)):
        made = client.generate(PROMPT, model=model, profile=name, seed=3)
        plan = cards[name].guidance
        assert (made.used.model, made.used.profile) == (model, name)
        assert made.used.guidance_saving == (None if plan is None else pytest.approx(plan.saving))
        assert not made.notices
        assert made[0].data == first.setdefault(name, made[0].data), f"{name} paints another picture the second time"
    assert {name for name in cards if psnr(first[name], first["float"]) < 25} == set()
    assert len(set(first.values())) == len(first), "profiles differ"
