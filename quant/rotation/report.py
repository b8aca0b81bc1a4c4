"""What rotating and smoothing did to a model: each layer, folded or computed, and what that takes. Data, no tensors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)

Place = Literal["folded", "online", "none"]
"""Where a change of a layer's input is computed: in other layers' weights, at run time, or it is not made."""


class TransformForm(BaseModel):
    """What has to be known of an input transform to make an empty one."""

    model_config = _STRICT

    like: str = Field("", description="The layer whose transform it shares, as their inputs are the same; empty: none.")
    width: int = 0
    axis: int = Field(-1, description="Of the channels: -1, or 1 for convolutions.")
    factors: bool = False
    signs: int = Field(0, description="Size of a Hadamard block with random signs; 0: none.")
    first: int = Field(0, description="Size of the first block; 0: none.")
    second: int = Field(0, description="Size of the second block; 0: none.")
    permutation: bool = False


class LayerRotation(BaseModel):
    """What became of one layer's input."""

    model_config = _STRICT

    name: str
    rotation: Place = "none"
    factors: Place = "none"
    block: int = Field(0, description="Channels that are rotated together.")
    exponent: float | None = Field(None, description="Of smoothing factors.")
    into: tuple[str, ...] = Field((), description="Layers whose weights took up what is folded.")
    like: str = Field("", description="The layer that computes it too, from the same input: backends do so once.")
    macs: int = Field(0, description="Multiply-adds of what is online, in one call for one row; 0 where `like` is set.")
    gain: float | None = Field(None, description="Share of the output's squared error that rotating takes away.")
    because: str = Field("", description="Why it is not rotated, or not folded.")


class RotationReport(BaseModel):
    """All linears and convolutions that a recipe quantizes, in the order of the module.

    Attributes:
        outliers_before, outliers_after: of kept inputs of these layers, see `channels.outlier_ratio`.
        online_share: multiply-adds of what is online by those of all linears and convolutions.
    """

    model_config = _STRICT

    layers: tuple[LayerRotation, ...] = ()
    outliers_before: float = 1.0
    outliers_after: float = 1.0
    online_share: float = 0.0
    notes: tuple[str, ...] = ()

    def count(self, place: Place) -> int:
        """How many layers are rotated in that way."""
        return sum(layer.rotation == place for layer in self.layers)
