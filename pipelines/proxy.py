"""Stands where a pipeline expects its denoiser: packs each call as data and waits for whoever runs it.

Knows a pipeline's habits (positional or named arguments, one batch or one call per branch); must not know jobs or hubs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from pipelines.denoiser import COND, UNCOND, UNKNOWN, DenoiserCall, argument_names
from pipelines.families import COND_FIRST, SHARED_ARGUMENTS, SHARED_TUPLES, UnsupportedModel

BRANCHES = {"cond": COND, "uncond": UNCOND}
"""What pipelines say by `cache_context`; any other word leaves it to the number of rows."""


@dataclass
class Clock:
    """How far one job's scheduler is: `step` of `total` are done, at `timesteps`. Set by whoever watches it."""

    step: int = 0
    total: int = 0
    timesteps: tuple[float, ...] = ()


@dataclass
class DenoiserOutput(BaseOutput):  # type: ignore[misc]
    """What denoisers return when asked for a dictionary."""

    sample: Tensor


class DenoiserProxy:
    """A denoiser that has no weights. Everything but calls is answered by the skeleton."""

    def __init__(
        self,
        skeleton: nn.Module,
        submit: Callable[[DenoiserCall], Tensor],
        clock: Clock,
        *,
        pictures: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.kind = type(skeleton)
        self._skeleton = skeleton
        self._submit = submit
        self._clock = clock
        self._pictures = pictures
        self._context: str | None = None
        self._signature = inspect.signature(type(skeleton).forward)
        self._sample_name, self._timestep_name = argument_names(type(skeleton))
        self.device = device
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._skeleton, name)

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Hears which branch the calls inside belong to."""
        previous, self._context = self._context, name
        try:
            yield
        finally:
            self._context = previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the call elsewhere; answers as the real denoiser would."""
        bound = dict(self._signature.bind(self._skeleton, *args, **kwargs).arguments)
        bound.pop("self")
        bound.update(bound.pop("kwargs", {}))
        return_dict = bound.pop("return_dict", True)
        output = self._submit(self._pack(bound))
        return DenoiserOutput(sample=output) if return_dict else (output,)

    def _pack(self, arguments: dict[str, Any]) -> DenoiserCall:
        sample = arguments.pop(self._sample_name)
        if not isinstance(sample, Tensor):
            kind = type(self._skeleton).__name__
            raise UnsupportedModel(f"{kind} takes its samples as {type(sample).__name__}; only tensors are served")
        rows = sample.shape[0]
        tensors: dict[str, Tensor] = {}
        constants: dict[str, Any] = {}
        timestep = torch.as_tensor(arguments.pop(self._timestep_name), device=sample.device)
        _flatten("", arguments, tensors, constants)
        own = {name for name, value in tensors.items() if _per_row(name, value, rows)}
        return DenoiserCall(
            sample=sample,
            # one for all rows, one for each, or one for each token of each row
            timestep=timestep if timestep.ndim > 1 else timestep.reshape(-1).expand(rows),
            step=torch.full((rows,), self._clock.step),
            total_steps=torch.full((rows,), self._clock.total),
            branch=self._branches(rows),
            inputs={name: value for name, value in tensors.items() if name in own},
            shared={name: value for name, value in tensors.items() if name not in own},
            constants=constants,
        )

    def _branches(self, rows: int) -> Tensor:
        heard = BRANCHES.get(self._context or "")
        if heard is not None:
            return torch.full((rows,), heard)
        if rows == 2 * self._pictures:
            first, second = (COND, UNCOND) if type(self._skeleton).__name__ in COND_FIRST else (UNCOND, COND)
            return torch.tensor([first] * self._pictures + [second] * self._pictures)
        return torch.full((rows,), COND if rows == self._pictures else UNKNOWN)


def _per_row(name: str, value: Tensor, rows: int) -> bool:
    shared = name in SHARED_ARGUMENTS or name.endswith("[]")
    return value.ndim > 0 and value.shape[0] == rows and not shared


def _flatten(prefix: str, value: Any, tensors: dict[str, Tensor], constants: dict[str, Any]) -> None:
    for name, item in value.items():
        path = f"{prefix}{name}"
        if isinstance(item, Tensor):
            tensors[path] = item
        elif isinstance(item, dict) and item:
            _flatten(f"{path}.", item, tensors, constants)
        elif name in SHARED_TUPLES and isinstance(item, list | tuple):
            tensors[f"{path}[]"] = torch.stack(tuple(item))
        elif isinstance(item, list | tuple) and any(isinstance(entry, Tensor) for entry in item):
            raise UnsupportedModel(f"the denoiser's argument {path} is a list of tensors; only tensors are served")
        else:
            constants[path] = item
