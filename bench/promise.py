"""Whether `"profile": "auto"` keeps its promises: pictures of unseen prompts, as files over HTTP, beside float's.

Each promise of PSNR draws every prompt by whatever profile the service chooses for it, and float draws it from the same
seed. Builds measured their spread on other prompts. Rows are kept under build/promise/, so that a stopped run goes on.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import machine
from bench.numbers import percentile, table
from bench.service import service
from bench.table import Found, Kept
from halftone.aclient import AsyncClient
from pipelines.similarity import decibels, psnr
from zoo.build import ZOO, model_defaults
from zoo.worlds import world_of

OUT: Final = Path("docs/results")
WORK: Final = Path("build/promise")
KNOWN: Final = 256
"""Unseen prompts that builds were measured on: those that are asked here come after them."""

PROMPTS: Final = 300
SHARE: Final = 0.95
"""Of pictures that a promise holds for, with that confidence: what the service promises unless told otherwise."""

FIRST_SEED: Final = 9000
CLIENTS: Final = 16

HEAD = """# Does `auto` keep its promise?

Made by `python -m bench promise` (resumes row by row); numbers also in `promise.json`. {prompts} unseen prompts a row,
none of which builds were measured on; pictures as PNG files over HTTP, each beside float's of the same seed. A promise
is made for {share:.0%} of pictures: of {prompts}, at most {allowed} may fall short. Float is chosen where no profile's
build vouches for so much. Measured on {cores} cores of {processor}, {date}.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A promise for a model's pictures at a number of steps."""

    model: str
    steps: int
    min_psnr_db: float

    @property
    def name(self) -> str:
        """Unique among all rows; also a file's name."""
        return f"{self.model}-{self.steps}-{self.min_psnr_db:g}"


Truths = dict[tuple[str, int], list[tuple[str, Tensor]]]
"""Float's pictures by model and number of steps: promises are held against the same ones."""

MODELS: Final = {"shapes-unet": (35.0, 40.0, 45.0, 50.0), "shapes-dit": (35.0, 40.0, 45.0, 50.0)}
STEPS: Final = (25, 15)
"""The models' default, and a number that no build measured: between two that it did."""


def rows() -> list[Row]:
    """Every promise at the default number of steps, the middle ones at the other one."""
    usual, other = STEPS
    return [
        *(Row(model, usual, least) for model, all_of in MODELS.items() for least in all_of),
        *(Row(model, other, least) for model, all_of in MODELS.items() for least in all_of[1:3]),
    ]


def run() -> None:
    """Measure every row that is not there yet, then write the table."""
    kept = Kept(WORK)
    missing = [row for row in rows() if kept.read(row.name) is None]
    if missing:
        truths = Truths()
        with service() as port:
            for row in missing:
                kept.write(row.name, asyncio.run(measured(port, row, truths)))
                print(f"{row.name} is measured", flush=True)
    report(kept)


async def measured(port: int, row: Row, truths: Truths) -> Found:
    """One row: what was chosen, and the PSNR of every file."""
    prompts = [one.prompt for one in world_of(model_defaults(ZOO / "models" / row.model)).asked(KNOWN + PROMPTS)]
    asked = {"quality": {"min_psnr_db": row.min_psnr_db}}
    async with AsyncClient(f"http://127.0.0.1:{port}") as client:
        own = await _drawn(client, row, prompts[KNOWN:], {"profile": "auto", **asked})
        if (row.model, row.steps) not in truths:
            truths[row.model, row.steps] = await _drawn(client, row, prompts[KNOWN:], {"profile": "float"})
    pairs = zip(own, truths[row.model, row.steps], strict=True)
    values = [psnr(picture, exact) for (_, picture), (_, exact) in pairs]
    return {
        "model": row.model,
        "steps": row.steps,
        "promised_db": row.min_psnr_db,
        "chosen": dict(Counter(profile for profile, _ in own)),
        "psnr_db": [decibels(value) for value in values],
    }


async def _drawn(
    client: AsyncClient, row: Row, prompts: Sequence[str], fields: dict[str, Any]
) -> list[tuple[str, Tensor]]:
    """The profile and picture [3, H, W] in 0..1 of every prompt, in order."""
    seats = asyncio.Semaphore(CLIENTS)

    async def draw(number: int, prompt: str) -> tuple[str, Tensor]:
        common: dict[str, Any] = {"model": row.model, "num_inference_steps": row.steps, "seed": FIRST_SEED + number}
        async with seats:
            made = await client.generate(prompt, **(common | fields))
        levels = np.asarray(Image.open(io.BytesIO(made[0].data)).convert("RGB"), np.float32)
        return made.used.profile, torch.from_numpy(levels / 255).permute(2, 0, 1)

    return list(await asyncio.gather(*(draw(number, prompt) for number, prompt in enumerate(prompts))))


def allowed(count: int) -> int:
    """Of so many pictures, those that may fall short."""
    return math.floor((1 - SHARE) * count + 1e-9)


def report(kept: Kept) -> None:
    """Writes the table from the rows that are there, one at least."""
    found = [one for row in rows() if (one := kept.read(row.name)) is not None]
    facts = {"prompts": PROMPTS, "share": SHARE, "allowed": allowed(PROMPTS), "machine": machine.describe()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "promise.json").write_text(json.dumps({"facts": facts, "rows": found}, indent=1) + "\n", encoding="utf-8")
    (OUT / "promise.md").write_text(markdown(facts, found), encoding="utf-8")


def markdown(facts: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    told = {name: value for name, value in facts.items() if name != "machine"}
    place = {name: facts["machine"][name] for name in ("cores", "processor", "date")}
    return f"{HEAD.format(**told, **place)}\n{table([_line(one) for one in found])}\n"


def _line(one: Found) -> dict[str, object]:
    values = [math.inf if value is None else value for value in one["psnr_db"]]
    short = sum(value < one["promised_db"] for value in values)
    return {
        "model": one["model"],
        "steps": one["steps"],
        "promised dB": one["promised_db"],
        "chosen": ", ".join(f"{name} ({count})" for name, count in one["chosen"].items()),
        "short of it": short,
        "share": f"{short / len(values):.1%}",
        "least dB": min(values),
        "twentieth dB": percentile(values, 0.05),
        "median dB": percentile(values, 0.5),
        "kept": "yes" if short <= allowed(len(values)) else "no",
    }
