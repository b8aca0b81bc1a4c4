"""Subjects that no folder holds: single layers, and a video model at public width, with calls made by code.

Must not know rivals or what is measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

import quant
from bench.calls import Answered
from bench.rivals import Work
from pipelines.sizes import PUBLIC
from quant.backends.call import Role

CALLS: Final = 4
"""Calls to calibrate on, each at a time of its own; two rows, one of either branch."""

ROLES: Final[dict[str, Role]] = {"timestep": "time", "encoder_hidden_states": "text"}

TESTED: Final = (100, 101)
"""Seeds of the calls that are timed."""


@dataclass(frozen=True)
class Made(ABC):
    """A module with random weights, made by code wherever it is needed."""

    name: str
    root: Path

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, its weights drawn from the global generator."""

    @abstractmethod
    def inputs(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random arguments [2, ...] by name, the timestep left out."""

    def prepare(self) -> None:
        """Makes sure that there is the folder in which benches keep things; of the module itself nothing is kept."""
        self.root.mkdir(parents=True, exist_ok=True)

    def calibration(self) -> list[quant.Call]:
        """Random inputs at several times."""
        return [self._call(seed) for seed in range(CALLS)]

    def test(self) -> list[Answered]:
        """Others, with the float module's answers."""
        module = self._module()
        with torch.no_grad():
            return [Answered(call, quant.call_module(module, call)) for call in map(self._call, TESTED)]

    def work(self, rival: str, threads: int) -> Work:
        """What a rival gets."""
        folder = self.root / "rivals" / self.name / rival
        return Work(self.name, self._module, self._empty, self.calibration, folder, threads=threads)

    def _module(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval().requires_grad_(False)

    def _empty(self) -> nn.Module:
        with init_empty_weights(include_buffers=False):
            return self.build().eval().requires_grad_(False)

    def _call(self, seed: int) -> quant.Call:
        rows = self.inputs(torch.Generator().manual_seed(seed))
        step = torch.full((2,), seed % CALLS)
        clock = quant.StepClock(step, torch.full((2,), CALLS), torch.tensor([quant.UNCOND, quant.COND]))
        times = 999.0 - 200.0 * step
        return quant.Call({**rows, "timestep": times}, clock, constants={"return_dict": False}, roles=ROLES)


class _OneLayer(nn.Module):
    """One layer as a denoiser."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """`sample` [B, ...] and `timestep` [B], which is not used."""
        return (self.layer(sample),)


@dataclass(frozen=True)
class Layer(Made):
    """A linear layer of (rows, inputs, outputs), or a 3x3 convolution of (inputs, outputs, side of two pictures)."""

    kind: str
    sizes: tuple[int, int, int]

    def build(self) -> nn.Module:
        """The layer, as a denoiser."""
        first, second, third = self.sizes
        linear = self.kind == "linear"
        return _OneLayer(nn.Linear(second, third) if linear else nn.Conv2d(first, second, 3, padding=1))

    def inputs(self, generator: torch.Generator) -> dict[str, Tensor]:
        """`sample` [2, rows / 2, inputs] or [2, inputs, side, side]."""
        first, second, third = self.sizes
        shape = (2, first // 2, second) if self.kind == "linear" else (2, first, third, third)
        return {"sample": torch.randn(shape, generator=generator)}

    def multiply_adds(self) -> int:
        """Of a call."""
        first, second, third = self.sizes
        return first * second * third if self.kind == "linear" else 2 * 9 * first * second * third * third


SMALL_VIDEO: Final = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "text_dim": 32, "freq_dim": 32}
TOKENS: Final = 32
"""Of a video's text."""


@dataclass(frozen=True)
class Video(Made):
    """Wan 2.1 at the width of its 1.3 billion parameters with two blocks, or a small one."""

    frames: int
    side: int
    small: bool = False

    def build(self) -> nn.Module:
        """The transformer."""
        public = PUBLIC["wan2.1-1.3b"]
        shrink = SMALL_VIDEO if self.small else {}
        module: nn.Module = getattr(diffusers, public.kind)(**{**public.config, **shrink, "num_layers": 2})
        return module

    def inputs(self, generator: torch.Generator) -> dict[str, Tensor]:
        """`hidden_states` [2, 16, frames, side, side] and `encoder_hidden_states` [2, tokens, width of text]."""
        width = SMALL_VIDEO["text_dim"] if self.small else 4096
        latents = torch.randn(2, 16, self.frames, self.side, self.side, generator=generator)
        text = torch.randn(2, TOKENS, width, generator=generator)
        return {"hidden_states": latents, "encoder_hidden_states": text}
