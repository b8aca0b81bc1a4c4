"""`python -m zoo.sheet`: the README's pictures, painted by a running service, so that they are what users get."""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from pathlib import Path

import httpx
from PIL import Image

from zoo.accuracy import unseen
from zoo.film_accuracy import unseen_films

FIRST = "a large red circle left of a small blue square on a beige background"
SCALE = 4
SHEETS = {"shapes-unet": ("float", "w8a8"), "shapes-dit": ("float", "trdq-w4a8", "trdq-w4a8-cfg")}
"""A picture for each model, with a line for each of these profiles."""

FILMED = ("float", "trdq-w8a8")
EVERY = 4
"""Of so many frames of a film one is shown."""


def paint(url: str, model: str, prompt: str, profile: str, seed: int) -> Image.Image:
    """One picture from the service, enlarged without smoothing."""
    body = {"model": model, "prompt": prompt, "profile": profile, "seed": seed, "response_format": "url"}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120).raise_for_status().json()
    data = httpx.get(answer["data"][0]["url"]).raise_for_status().content
    picture = Image.open(io.BytesIO(data))
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


def film(url: str, prompt: str, profile: str, seed: int) -> list[Image.Image]:
    """Some frames of one film from the service, the default video model's."""
    body = {"prompt": prompt, "profile": profile, "seed": seed, "output_format": "frames"}
    video = httpx.post(f"{url}/v1/videos", json=body, timeout=60).raise_for_status().json()
    while video["status"] in ("queued", "in_progress"):
        time.sleep(0.2)
        video = httpx.get(f"{url}/v1/videos/{video['id']}").raise_for_status().json()
    data = httpx.get(f"{url}/v1/videos/{video['id']}/content", timeout=60).raise_for_status().content
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".png"))
        return [Image.open(io.BytesIO(files.read(name))).convert("RGB") for name in names[::EVERY]]


def films(url: str) -> Image.Image:
    """Unseen prompts below each other, some frames of each profile's film side by side."""
    tasks = unseen_films(4, seed=3)
    blocks = [sheet([film(url, task.prompt, name, i) for i, task in enumerate(tasks)]) for name in FILMED]
    width, gap = blocks[0].width, 16
    whole = Image.new("RGB", (len(blocks) * (width + gap) - gap, blocks[0].height), "white")
    for place, block in enumerate(blocks):
        whole.paste(block, (place * (width + gap), 0))
    return whole


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size in rows, a white gap between."""
    side, gap = rows[0][0].width, 4
    whole = Image.new("RGB", (len(rows[0]) * (side + gap) - gap, len(rows) * (side + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            whole.paste(picture, (x * (side + gap), y * (side + gap)))
    return whole


def main() -> None:
    """Paint the first picture and the sheets of unseen prompts into a folder."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    options.add_argument("--out", type=Path, default=Path("docs/pictures"))
    choice = options.parse_args()
    choice.out.mkdir(parents=True, exist_ok=True)
    paint(choice.url, "shapes-unet", FIRST, "w8a8", 7).save(choice.out / "first.png")
    prompts = [task.prompt for pair in zip(unseen(1, 4), unseen(2, 4), strict=True) for task in pair]
    for model, profiles in SHEETS.items():
        rows = [[paint(choice.url, model, prompt, name, i) for i, prompt in enumerate(prompts)] for name in profiles]
        small = sheet(rows)
        small.resize((small.width // 2, small.height // 2), Image.Resampling.NEAREST).save(choice.out / f"{model}.png")
    films(choice.url).save(choice.out / "shapes-video.png")


if __name__ == "__main__":
    main()
