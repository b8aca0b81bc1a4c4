"""What rotating and smoothing did to a model: each layer, folded or computed, and what that takes. Data, no tensors."""

from __future__ import annotations

from collections.abc import Collection
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

    @property
    def is_online(self) -> bool:
        """Whether anything is computed at run time."""
        return "online" in (self.rotation, self.factors)

    def taken_off(self) -> LayerRotation:
        """Of a layer that is not behind a transform after all, as it stays float; what is folded remains."""
        changes: dict[str, object] = {"like": "", "macs": 0, "because": "the layer stays float"}
        if self.rotation == "online":
            changes |= {"rotation": "none", "block": 0}
        if self.factors == "online":
            changes |= {"factors": "none", "exponent": None}
        return self.model_copy(update=changes)


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

    def with_transforms(self, names: Collection[str]) -> RotationReport:
        """The report once only these layers are behind a transform: others with one online stayed float, and lost it.

        Where such a layer computed it for others with the same input, the first of those now does.
        """
        groups: dict[str, list[LayerRotation]] = {}
        for layer in self.layers:
            if layer.is_online:
                groups.setdefault(layer.like or layer.name, []).append(layer)
        told = {layer.name: layer for layer in self.layers}
        for group in groups.values():
            first, macs = "", sum(layer.macs for layer in group)
            for layer in group:
                if layer.name in names:
                    leads = {"like": first, "macs": 0 if first else macs}
                    told[layer.name], first = layer.model_copy(update=leads), first or layer.name
                else:
                    told[layer.name] = layer.taken_off()
        before, after = (sum(layer.macs for layer in layers) for layers in (self.layers, told.values()))
        share = self.online_share * after / max(1, before)
        return self.model_copy(update={"layers": tuple(told.values()), "online_share": share})

    def count(self, place: Place) -> int:
        """How many layers are rotated in that way."""
        return sum(layer.rotation == place for layer in self.layers)
