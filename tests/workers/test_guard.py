"""The guard on a real engine: which jobs it samples, what it compares, when it waits, when it gives up."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults
from pipelines.denoiser import TorchDenoiser
from pipelines.load import load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import load_profile
from pipelines.spreading import measure_spread, temporal_errors
from tests.workers.kit import DEFAULTS, TINY, Kit, request, tiny_settings
from workers.generate import order_of
from workers.messages import Compared, FromChild, GuardSkipped, Loaded

PROFILE = "rtn-w4a8"
SUBJECTS = ["a red box", "b", "c d", "e", "f g h", "i"]


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make_profile(root: Path) -> None:
    """A tiny model's artifact by the reference backend, with the spread of its pictures."""
    folder, out = root / "models" / TINY, root / "artifacts" / TINY / PROFILE
    recipe = quant.load_recipe(PROFILE).fast()
    defaults = Defaults.model_validate(DEFAULTS)
    quantize_folder(QuantizationOrder(folder, out, recipe, ["a b", "c"], defaults, TINY))
    components = load_components(folder)
    card = Manifest.read(out / "manifest.json").card(out)
    truth = TorchDenoiser("float", load_denoiser(components))
    profile = load_profile(card, components, quant.Options(root / "cache", 2**30, 1))
    spread = measure_spread(components, truth, profile, SUBJECTS, defaults, batch=2)
    errors = temporal_errors(components, card, SUBJECTS[0], defaults)
    assert errors, "a UNet has temporal features"
    spread = spread.model_copy(update={"temporal_error": errors})
    quant.set_fidelity(out, {"prompts": 6, "psnr_db": 40.0, "ssim": 0.9, "spread": spread.model_dump(mode="json")})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_settings(folder)
    make_profile(folder)
    return folder


@pytest.fixture
def kit_of(root: Path) -> Iterator[Callable[..., Kit]]:
    made: list[Kit] = []

    def make(**changes: Any) -> Kit:
        made.append(Kit(tiny_settings(root, guard_share=1.0, **changes)))
        return made[-1]

    yield make
    for kit in made:
        kit.close()


def told(kit: Kit, kind: type[FromChild]) -> list[Any]:
    return [message for message in kit.messages if isinstance(message, kind)]


def test_a_finished_job_is_compared_with_float_and_with_its_build(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    kit.run(request(profile=PROFILE, n=2))
    eventually(lambda: bool(told(kit, Compared)))
    one = told(kit, Compared)[0].comparison
    assert (one.model, one.profile, one.elsewhere) == (TINY, PROFILE, False)
    assert 5 < one.psnr_db < 80 and 0 < one.latent_error < 2 and one.seconds > 0
    assert len(one.call_errors) == DEFAULTS["num_inference_steps"]
    assert all(0 < error < 1 for error in one.call_errors)
    assert one.build_excess is not None and one.build_excess < 1, "the same machine meets the same errors"
    assert one.bets is not None and None not in one.bets
    assert not [batch for batch in kit.batches if batch.profile == "float"], "replays are no users' work"
    assert f"{PROFILE}@reference" in [one.profile for one in told(kit, Loaded)], "what is looked into counts as memory"


def test_float_jobs_and_failed_jobs_are_not_sampled(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    kit.run(request())
    with pytest.raises(Exception, match=r"."):
        kit.run(request(profile="none-such"))
    time.sleep(0.5)
    assert not told(kit, Compared) and not told(kit, GuardSkipped)


def test_the_share_is_of_jobs_whatever_runs_twice(root: Path) -> None:
    kit = Kit(tiny_settings(root, guard_share=0.3))
    try:
        guard = kit.tools.guard
        assert guard is not None
        guard.stop()
        kept: list[str] = []
        guard._keep = lambda sample: kept.append(sample.id)  # type: ignore[method-assign]
        wanted = request(profile=PROFILE)
        for number in range(1000):
            guard.offer(f"job-{number}", wanted, order_of(wanted), torch.zeros(1, 3, 8, 8), None)
        first = list(kept)
        for number in range(1000):
            guard.offer(f"job-{number}", wanted, order_of(wanted), torch.zeros(1, 3, 8, 8), None)
        assert kept == first * 2
        assert 240 < len(first) < 360
    finally:
        kit.close()


def test_what_finds_no_room_is_dropped_and_told(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of(guard_bytes=10)
    kit.run(request(profile=PROFILE))
    [skipped] = told(kit, GuardSkipped)
    assert (skipped.reason, skipped.model, skipped.profile) == ("full", TINY, PROFILE)


def test_float_is_loaded_only_where_the_budget_has_room(kit_of: Callable[..., Kit], root: Path) -> None:
    plenty = kit_of()
    plenty.run(request(profile=PROFILE))
    budget = plenty.tools.residents.weights_bytes
    eventually(lambda: bool(told(plenty, Compared)))
    kit = kit_of(memory_budget_bytes=budget + 1000)
    kit.run(request(profile=PROFILE))
    eventually(lambda: bool(told(kit, GuardSkipped)))
    assert told(kit, GuardSkipped)[0].reason == "memory"
    assert (TINY, PROFILE) in kit.tools.residents.profiles, "nothing was evicted for the replay"


def test_a_replay_waits_while_anybody_is_here(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    with kit.tools.users.somebody():
        kit.run(request(profile=PROFILE))
        time.sleep(0.5)
        assert not told(kit, Compared)
    eventually(lambda: bool(told(kit, Compared)))


def test_a_job_that_comes_during_a_replay_waits_for_one_call_at_most(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    kit.run(request(profile=PROFILE))
    eventually(lambda: bool(told(kit, Compared)))  # all is loaded
    hub = kit.tools.hub
    calls: list[bool] = []
    run = hub.run

    def watched(task: Any, *rest: Any) -> Any:
        calls.append(task.background)
        return run(task, *rest)

    hub.run = watched  # type: ignore[method-assign, assignment]
    kit.run(request(profile=PROFILE, num_inference_steps=20))
    eventually(lambda: calls.count(True) > 3)
    with kit.tools.users.somebody():
        begun = len(calls)
        time.sleep(0.3)
        assert len(calls) <= begun + 1, "the call that was on its way, and no more"
    eventually(lambda: len(told(kit, Compared)) == 2)


def test_a_user_who_needs_the_memory_ends_the_replay(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    kit.run(request(profile=PROFILE))
    eventually(lambda: bool(told(kit, Compared)))
    kit.run(request(profile=PROFILE, num_inference_steps=20))
    eventually(lambda: held(kit) > 0)
    with kit.tools.users.somebody():
        kit.tools.residents._pressed = True
        eventually(lambda: bool(told(kit, GuardSkipped)))
        assert held(kit) == 0, "what the replay held is free"
        kit.tools.residents._pressed = False
    assert told(kit, GuardSkipped)[0].reason == "preempted"


def held(kit: Kit) -> int:
    """How many things the replay holds."""
    return sum(entry.users for entry in kit.tools.residents._entries.values())


def test_stopping_gives_up_a_replay(kit_of: Callable[..., Kit]) -> None:
    kit = kit_of()
    with kit.tools.users.somebody():
        kit.run(request(profile=PROFILE))
        stopped = threading.Thread(target=kit.tools.guard.stop if kit.tools.guard else None)
        stopped.start()
        stopped.join(10)
        assert not stopped.is_alive()


def test_a_damaged_artifact_exceeds_what_its_build_measured(root: Path, tmp_path: Path) -> None:
    for part in ("models", "artifacts"):
        shutil.copytree(root / part, tmp_path / part)
    out = tmp_path / "artifacts" / TINY / PROFILE
    tensors = load_file(out / "denoiser.safetensors")
    name = sorted(name for name in tensors if name.endswith(".scales"))[3]
    tensors[name] = tensors[name] * 4
    save_file(tensors, out / "denoiser.safetensors")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["denoiser.safetensors"] = quant.sha256_of([out / "denoiser.safetensors"])
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    kit = Kit(tiny_settings(tmp_path, guard_share=1.0))
    try:
        kit.run(request(profile=PROFILE))
        eventually(lambda: bool(told(kit, Compared)))
        one = told(kit, Compared)[0].comparison
        assert one.build_excess is not None and one.build_excess > 1
    finally:
        kit.close()
