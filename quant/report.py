"""What quantizing did to every layer: its form, bytes and error, or why it stayed float. Plain data, no tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from quant.rotation.report import TransformForm

_STRICT = ConfigDict(extra="forbid", frozen=True)
_FEW = 5
"""Names in a note."""


def counted(names: Sequence[str]) -> str:
    """How many there are and the first few: `7 (a, b, c, d, e and 2 more)`."""
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{len(names)} ({', '.join(names[:_FEW])}{more})"


class LayerForm(BaseModel):
    """What has to be known of a quantized layer, beside its float shape, to make an empty one."""

    model_config = _STRICT

    weight_bits: int
    input_bits: int | None = Field(None, description="None: the input stays float.")
    slots: int = Field(0, description="Of input scales that depend on time; 0: one scale.")
    sizes: tuple[int, ...] = Field((), description="Parts of the input channels with own scales; none: whole.")
    kind: Literal["plain", "stepwise", "published"] = Field(
        "plain",
        description="`stepwise`: also a zero point for each slot (FSC). `published`: all anew for each range of time.",
    )
    grain: Literal["tensor", "token"] = Field("tensor", description="`token`: inputs' scales come with each token.")
    zero_point: Literal["shared", "token"] = Field("shared", description="`token`: inputs' zero points too.")
    offset_weights: bool = Field(False, description="Whether output channels have zero points.")
    ranges: int = Field(0, description="Of time, of a published layer.")
    transform: TransformForm | None = Field(None, description="Of a published layer's inputs, the same at all ranges.")


class LayerReport(BaseModel):
    """One module that owns saved tensors. Exactly one of `scheme` and `kept_float_because` is set."""

    model_config = _STRICT

    name: str
    kind: str = Field(description="`linear`, `conv2d`, or the class of what has no quantized form.")
    scheme: str | None = None
    bytes_before: int = Field(description="In float32.")
    bytes_after: int = Field(description="As a backend holds it: integers, scales, and the rest in float32.")
    error: float | None = Field(None, description="Relative error of its output that rounding predicts, calibrated.")
    output_error: float | None = Field(None, description="Relative error of the model's output from this layer alone.")
    macs: int = Field(0, description="Multiply-adds of a linear or convolution in one call for one row.")
    kept_float_because: str | None = None


class Report(BaseModel):
    """All layers of a denoiser, in the order of its modules. `notes`: what else a person should know."""

    model_config = _STRICT

    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Bytes of all weights in float32."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of all weights as a backend holds them."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def quantized_share(self) -> float:
        """Share of the linears' and convolutions' multiply-adds that quantized layers do, 0..1."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.scheme is not None) / max(1, total)

    def kept(self) -> dict[str, str]:
        """Name to reason of every linear and convolution that stayed float."""
        return {
            layer.name: layer.kept_float_because
            for layer in self.layers
            if layer.kept_float_because is not None and layer.kind in ("linear", "conv2d")
        }


class Learned(NamedTuple):
    """What a unit came to.

    Attributes:
        loss: of its output on the rows that it learned on, see `quant.learn`.
        power: the loss that zeros would have there.
        missed: rows that memory had no room for.
    """

    loss: float
    power: float
    missed: int

    @property
    def relative(self) -> float:
        """Relative error that is left in the unit's output."""
        return math.sqrt(self.loss / max(self.power, 1e-30))


@dataclass(frozen=True)
class Reconstruction:
    """What became of all units, by name.

    Attributes:
        learned: those that were reconstructed, in order.
        left: why a unit stayed as it was.
    """

    learned: Mapping[str, Learned] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """For people."""
        notes = []
        if self.learned:
            errors = {name: unit.relative for name, unit in self.learned.items()}
            worst, median = max(errors, key=errors.__getitem__), statistics.median(errors.values())
            notes.append(
                f"units that were reconstructed: {len(errors)}; relative errors left in their outputs: "
                f"{median:.2g} in the median, {errors[worst]:.2g} at most, of {worst}"
            )
        if self.left:
            told = counted([f"{name}: {why}" for name, why in self.left.items()])
            notes.append(f"units that were not reconstructed: {told}")
        missed = [f"{name}: {unit.missed}" for name, unit in self.learned.items() if unit.missed]
        if missed:
            notes.append(f"units that learned without rows that memory had no room for: {counted(missed)}")
        return tuple(notes)
