"""How far a profile's pictures are from the float model's at the same seeds: PSNR, SSIM, latents, prompt accuracy.

Measured on final frames before encoding. Must not know how a profile computes, or what a prompt means: the caller
passes a checker where one exists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import quant
from jobs.profile import FLOAT, Defaults
from pipelines.calibrate import Progress, silent
from pipelines.denoiser import Denoiser
from pipelines.load import Components
from pipelines.session import DirectSeams, Order, Session

EQUAL_DB = 100.0
"""PSNR that equal pictures count as, so that means stay finite; 8-bit pictures that differ at all stay below 97."""

Checker = Callable[[str, Tensor], bool]
"""Whether a picture [3, H, W] float in 0..1 shows all that a prompt names."""


@dataclass(frozen=True, slots=True)
class PromptFidelity:
    """One prompt by one profile, against float at the same seed. `right` is None without a checker."""

    prompt: str
    seed: int
    psnr_db: float
    ssim: float
    latent_error: float
    seconds: float
    right: bool | None


@dataclass(frozen=True, slots=True)
class ProfileFidelity:
    """One profile over all prompts: means, and every prompt. Accuracies are None without a checker."""

    profile: str
    prompts: int
    psnr_db: float
    ssim: float
    latent_error: float
    seconds: float
    weights_bytes: int
    prompt_accuracy: float | None
    float_prompt_accuracy: float | None
    each: tuple[PromptFidelity, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What a manifest's `fidelity` holds."""
        names = ("prompts", "psnr_db", "ssim", "prompt_accuracy", "float_prompt_accuracy")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class _Drawn:
    picture: Tensor
    latents: Tensor
    seconds: float


def evaluate(
    components: Components,
    denoisers: Mapping[str, Denoiser],
    prompts: Sequence[str],
    defaults: Defaults,
    *,
    seed: int = 0,
    checker: Checker | None = None,
    progress: Progress = silent,
) -> list[ProfileFidelity]:
    """Draws every prompt by every denoiser, picture i from seed `seed + i`, and compares each with `float`'s.

    Raises:
        ValueError: there is no prompt, or no denoiser named `float` to compare with.
    """
    if not prompts or FLOAT not in denoisers:
        raise ValueError(f"fidelity needs a denoiser named {FLOAT!r} and at least one prompt")
    each: dict[str, list[PromptFidelity]] = {name: [] for name in denoisers}
    for number, prompt in enumerate(prompts):
        progress("comparing", number, len(prompts))
        order = _order(prompt, seed + number, defaults)
        truth = _draw(components, denoisers[FLOAT], order)
        for name, denoiser in denoisers.items():
            drawn = truth if name == FLOAT else _draw(components, denoiser, order)
            each[name].append(_compare(order, drawn, truth, checker))
    progress("comparing", len(prompts), len(prompts))
    right = _accuracy(each[FLOAT])
    return [_summarize(name, denoisers[name], rows, right) for name, rows in each.items()]


def _order(prompt: str, seed: int, defaults: Defaults) -> Order:
    return Order(
        prompt=prompt,
        negative_prompt="",
        width=defaults.width,
        height=defaults.height,
        steps=defaults.num_inference_steps,
        guidance=defaults.guidance_scale,
        seeds=[seed],
    )


def _draw(components: Components, denoiser: Denoiser, order: Order) -> _Drawn:
    session = Session(components, order, DirectSeams(denoiser))
    latents: list[Tensor] = []
    vae = session.pipeline.vae  # the session's own copy
    decode = vae.decode

    def decode_and_keep(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        latents.append(given.float().cpu())
        return decode(given, *args, **kwargs)

    vae.decode = decode_and_keep
    started = time.perf_counter()
    picture = session.draw()[0]
    return _Drawn(picture, torch.cat(latents), time.perf_counter() - started)


def _compare(order: Order, drawn: _Drawn, truth: _Drawn, checker: Checker | None) -> PromptFidelity:
    return PromptFidelity(
        prompt=order.prompt,
        seed=order.seeds[0],
        psnr_db=psnr(drawn.picture, truth.picture),
        ssim=ssim(drawn.picture, truth.picture),
        latent_error=quant.relative_error(drawn.latents, truth.latents),
        seconds=drawn.seconds,
        right=None if checker is None else checker(order.prompt, drawn.picture),
    )


def _summarize(
    name: str, denoiser: Denoiser, each: list[PromptFidelity], float_accuracy: float | None
) -> ProfileFidelity:
    def mean(field: str) -> float:
        return math.fsum(getattr(row, field) for row in each) / len(each)

    return ProfileFidelity(
        profile=name,
        prompts=len(each),
        psnr_db=mean("psnr_db"),
        ssim=mean("ssim"),
        latent_error=mean("latent_error"),
        seconds=mean("seconds"),
        weights_bytes=denoiser.weights_bytes,
        prompt_accuracy=_accuracy(each),
        float_prompt_accuracy=float_accuracy,
        each=tuple(each),
    )


def _accuracy(each: list[PromptFidelity]) -> float | None:
    known = [row.right for row in each if row.right is not None]
    return sum(known) / len(known) if known else None


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one shape, values 0..1; EQUAL_DB when they are equal.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(picture, truth)
    error = float((picture.double() - truth.double()).square().mean())
    return EQUAL_DB if error == 0 else min(EQUAL_DB, -10 * math.log10(error))


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity of two pictures [C, H, W], values 0..1, by Wang et al. (2004): a Gaussian window of 11
    pixels and sigma 1.5, only where it fits whole, mean over places and channels.

    Raises:
        ValueError: the shapes differ, or a side is shorter than 11.
    """
    _require_same_shape(picture, truth)
    if picture.ndim != 3 or min(picture.shape[1:]) < 11:
        raise ValueError(f"SSIM compares pictures [C, H, W] of at least 11 by 11, not {list(picture.shape)}")
    x, y = picture.double()[:, None], truth.double()[:, None]
    window = _gaussian(11, 1.5)

    def blur(values: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(values, window[None, None, :, None]), window[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    both = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _gaussian(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()


def _require_same_shape(picture: Tensor, truth: Tensor) -> None:
    if picture.shape != truth.shape:
        raise ValueError(f"pictures of shapes {list(picture.shape)} and {list(truth.shape)} cannot be compared")
