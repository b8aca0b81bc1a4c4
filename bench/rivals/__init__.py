"""What a rival is: a way to run a denoiser's calls, one adapter file each. Must not know what is measured of it.

Ours runs behind the same door (`ours.py`), so that all are timed and weighed alike. A rival that cannot run here is
told by name and reason, never left out in silence.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from torch import Tensor, nn

import quant


@dataclass(frozen=True)
class Work:
    """What a rival is to run.

    Attributes:
        name: of the subject.
        load: makes a float32 module in eval mode on the CPU, which the caller owns.
        empty: the same module without weights (parameters on the meta device).
        calls: reads the calls to calibrate on, float32 on the CPU; the first is of the size that is measured.
        folder: what this rival keeps for this subject between processes; nobody else writes there.
        source: where the module's float weights lie, a folder as diffusers writes it; None where it is made by code.
        threads: CPU threads of a call.
        home: the same model at the size at which it is made what serves all sizes; None if this is that.
    """

    name: str
    load: Callable[[], nn.Module]
    empty: Callable[[], nn.Module]
    calls: Callable[[], Sequence[quant.Call]]
    folder: Path
    source: Path | None = None
    threads: int = 0
    home: Work | None = None


class Runner(Protocol):
    """What answers calls: `quant.Executable` is one."""

    def run(self, call: quant.Call) -> Tensor:
        """The module's output [B, ...] float32 on the CPU, finished when it returns."""

    def close(self) -> None:
        """Lets go of weights and compiled code."""


class Rival(Protocol):
    """One way to run a denoiser."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def note(self) -> str:
        """What a reader must know of how it is run: formats, what stays float."""

    @property
    def builds(self) -> bool:
        """Whether `build` makes anything."""

    def why_not(self) -> str | None:
        """Why it cannot run on this machine; None if it can. Imports nothing heavy."""

    def build(self, work: Work) -> None:
        """Makes in `work.folder` what `open` needs, unless it is there: in a process of its own, not measured."""

    def open(self, work: Work) -> Runner:
        """Reads what was built, or the float weights, and makes it ready. Code may be compiled at the first call."""

    def files(self, work: Work) -> list[Path]:
        """What it reads weights from: files that an installation of it would have on disk."""


class AtOpening:
    """What rivals share that read the float32 files, and make what they run of them, at every opening."""

    builds = False

    def build(self, work: Work) -> None:
        """Nothing is made before."""

    def files(self, work: Work) -> list[Path]:
        """The float32 files; none where the module is made by code."""
        return [] if work.source is None else sorted(work.source.glob("*.safetensors"))


CPU: Final[Mapping[str, str]] = {
    "torch-fp32": "torch_float:FP32",
    "torch-bf16": "torch_float:BF16",
    "torch-bf16-compiled": "torch_float:BF16_COMPILED",
    "torchao-int8": "torchao_int8:EAGER",
    "torchao-int8-compiled": "torchao_int8:COMPILED",
    "quanto-int8": "quanto_int8:INT8",
    "sdnq-int8": "sdnq_int8:INT8",
    "openvino-bf16": "openvino_float:BF16",
    "openvino-nncf-int8": "openvino_nncf:INT8",
    "openvino-nncf-int8-f32": "openvino_nncf:INT8_F32",
    "tfmq-w8a8": "ours:TFMQ_W8A8",
    "trdq-w8a8": "ours:TRDQ_W8A8",
    "tfmq-w4a8": "ours:TFMQ_W4A8",
}
"""Names to where they are made, in the order of tables. Files are imported when their rival is asked for."""

OURS: Final = ("tfmq-w8a8", "trdq-w8a8", "tfmq-w4a8")


def rival(name: str, known: Mapping[str, str] = CPU) -> Rival:
    """The rival of that name.

    Raises:
        KeyError: there is none; the message lists those that there are.
    """
    if name not in known:
        raise KeyError(f"no rival {name!r}; there are {', '.join(known)}")
    file, _, attribute = known[name].partition(":")
    found: Rival = getattr(importlib.import_module(f"bench.rivals.{file}"), attribute)
    return found


def missing(package: str, install: str) -> str | None:
    """Why a package cannot be used, with what would help; None if it is installed."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"not installed (no module {package}); pip install {install}"
