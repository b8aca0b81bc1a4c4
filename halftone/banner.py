"""What `halftone serve` says once it is ready: where it is, what it has, and a line to try. Knows the API only."""

from __future__ import annotations

import json

from halftone.aclient import AsyncClient
from halftone.version import __version__
from halftone.views import ModelView, ProfileView
from jobs.errors import HalftoneError

EXAMPLE_PROMPT = "a large red circle left of a small blue square on a beige background"


async def banner(url: str, metrics_url: str, needs_key: bool, seconds: float) -> list[str]:
    """The banner's lines; asks the gateway at `url` for its models and profiles, unless that needs a key."""
    head = [
        f"Halftone {__version__} is ready at {url} after {seconds:.1f} s; the API is described at {url}/docs",
        f"metrics: {url}/metrics (gateway), {metrics_url} (worker)",
    ]
    if needs_key:
        return [*head, "API keys are set: send `Authorization: Bearer KEY`."]
    try:
        async with AsyncClient(url) as client:
            models, profiles = await client.models(), await client.profiles()
    except HalftoneError as fault:
        return [*head, f"models are not listed: {fault.message}"]
    return [*head, *(describe(model, profiles) for model in models), "try:", "  " + example(url, models, profiles)]


def describe(model: ModelView, profiles: tuple[ProfileView, ...]) -> str:
    """One model in a line: id, default size and steps, profiles with the size of their weights."""
    own = [f"{card.name} ({card.weights_bytes / 1e6:.1f} MB)" for card in profiles if card.model == model.id]
    size = f"{model.defaults.width}x{model.defaults.height}"
    return f"model {model.id}: {size}, {model.defaults.num_inference_steps} steps; profiles {', '.join(own)}"


def example(url: str, models: tuple[ModelView, ...], profiles: tuple[ProfileView, ...]) -> str:
    """A curl line that makes a picture by a quantized profile where there is one."""
    body: dict[str, object] = {"prompt": EXAMPLE_PROMPT, "seed": 7}
    quantized = [card for card in profiles if card.name != "float"]
    if quantized:
        body["profile"] = quantized[0].name
        if len(models) > 1:
            body["model"] = quantized[0].model
    return f"curl -s {url}/v1/images/generations -H 'content-type: application/json' -d '{json.dumps(body)}'"
