"""Clients that want pictures from a house on fire: they submit, repeat themselves, poll, cancel, and write it down."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.chaos.history import FINAL, History, Submit

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 60.0


def null_picture(chance: random.Random) -> dict[str, Any]:
    """A wish that costs nothing: for the protocol's sake."""
    return {"model": "null", "prompt": f"sleep {chance.choice([0, 0, 0.02, 0.1])}", "num_inference_steps": 3}


class Client:
    """One user with many wishes, one after the other, each with its own seeded luck."""

    def __init__(
        self,
        url: str,
        history: History,
        seed: int,
        wanted: Callable[[random.Random], dict[str, Any]] = null_picture,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=3.0)
        self._history = history
        self._chance = random.Random(seed)
        self._seed = seed
        self._wanted = wanted
        self._patience = patience
        self._count = 0

    async def work(self, enough: asyncio.Event) -> None:
        """Make wishes until it is enough, and see the last one through."""
        async with self._http:
            while not enough.is_set():
                self._count += 1
                await self._wish(self._history.submit(f"client {self._seed} wish {self._count}"))

    async def _wish(self, submit: Submit) -> None:
        body = self._wanted(self._chance)
        by_id = self._chance.random() < 0.5
        key = secrets.token_hex(16)
        job = await self._submit(submit, body, key, by_id)
        for _ in range(self._chance.choice([0, 0, 1, 2])):  # repeats, some at once and some later
            await asyncio.sleep(self._chance.choice([0, 0.05, 0.3]))
            await self._submit(submit, body, key, by_id)
        if self._chance.random() < 0.1:
            answer = await self._ask("POST", f"/v1/jobs/{job}/cancel")
            submit.cancel_confirmed = answer is not None and answer.get("status") == "canceled"
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if await self._look(submit, job) in FINAL:
                submit.settled_after = time.monotonic() - submit.invoked_at
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _submit(self, submit: Submit, body: dict[str, Any], key: str, by_id: bool) -> str:
        """Ask until there is an answer; the same id or key each time, so that it stays one wish."""
        while True:
            try:
                if by_id:
                    response = await self._http.put(f"/v1/jobs/{key}", json=body)
                else:
                    response = await self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                submit.outcomes.append("unknown")
            else:
                if response.status_code in {200, 202}:
                    submit.outcomes.append("ok")
                    job = str(response.json()["id"])
                    submit.job_ids.add(job)
                    return job
                # anything but "not now" is a fault of the service
                assert response.status_code in {429, 503}, f"{response.status_code}: {response.text}"
                assert "retry-after" in response.headers
                submit.outcomes.append("refused")
            await asyncio.sleep(0.1)

    async def _look(self, submit: Submit, job: str) -> str:
        answer = await self._ask("GET", f"/v1/jobs/{job}")
        if answer is None:
            return "?"
        hashes = [file["sha256"] + file["id"] for file in (answer["result"] or {}).get("files", [])]
        submit.saw(answer["status"], hashes)
        return str(answer["status"])

    async def _ask(self, method: str, path: str) -> dict[str, Any] | None:
        """An answer, or None when the house is on fire just now."""
        try:
            response = await self._http.request(method, path)
        except httpx.TransportError:
            return None
        assert response.status_code in {200, 409, 429, 503}, f"{method} {path}: {response.status_code} {response.text}"
        return dict(response.json()) if response.status_code == 200 else None
