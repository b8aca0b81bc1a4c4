"""The quality guard on real traffic: a damaged copy of a shipped artifact is found out, replaced, and lifted."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bench.guard_sabotage import damage
from bench.service import service
from halftone import Client
from zoo.build import ZOO
from zoo.worlds import PICTURES

PROFILE, HURT = "tfmq-w8a8", "hurt"


def with_a_damaged_profile(data: Path) -> None:
    """A shipped artifact under another name, one layer damaged; it claims the fidelity of its build."""
    source, target = ZOO / "artifacts" / "shapes-unet" / PROFILE, data / "artifacts" / "shapes-unet" / HURT
    damage(source, target, "scale-x4", seed=2)
    manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    (target / "manifest.json").write_text(json.dumps(manifest | {"profile": HURT}), encoding="utf-8")


def verdict(client: Client, profile: str) -> Any:
    return next((card for card in client.guard().data if card.profile == profile), None)


def until_compared(client: Client, profile: str, count: int, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while (card := verdict(client, profile)) is None or card.comparisons < count:
        assert time.monotonic() < deadline, card
        time.sleep(0.5)
    return card


@pytest.mark.timeout(900)
def test_damage_is_found_on_traffic_and_a_healthy_profile_is_left_alone() -> None:
    prompts = [task.prompt for task in PICTURES.asked(300)][256:]
    settings = {"guard_share": 1.0, "guard_action": "replace", "threads": 1}
    with service(with_a_damaged_profile, **settings) as port, Client(f"http://127.0.0.1:{port}", timeout=240) as client:
        for number, prompt in enumerate(prompts[:6]):
            images = client.generate(prompt, profile=HURT, seed=number)
            if images.used.profile != HURT:
                break
            until_compared(client, HURT, number + 1)
        card = until_compared(client, HURT, 4)
        assert (card.verdict, card.current) == ("failed", True)
        assert "probability" in card.reason
        images = client.generate(prompts[7], profile=HURT, seed=7)
        assert images.used.profile != HURT
        assert [notice.code for notice in images.notices] == ["profile_replaced"]
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert f'halftone_guard_verdict{{model="shapes-unet",profile="{HURT}",verdict="failed"}} 1.0' in metrics
        chosen = client.generate(prompts[8], profile="auto", quality={"min_psnr_db": 30}, seed=8)
        assert chosen.used.profile not in (HURT, "float")
        healthy = until_compared(client, chosen.used.profile, 1)
        assert healthy.verdict == "healthy"
        assert client.lift("shapes-unet", HURT).verdict == "healthy"
        assert client.generate(prompts[9], profile=HURT, seed=9).used.profile == HURT
