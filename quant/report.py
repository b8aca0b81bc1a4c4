"""What quantizing did to every layer: its form, bytes and error, or why it stayed float. Plain data, no tensors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)


class LayerForm(BaseModel):
    """What has to be known of a quantized layer, beside its float shape, to make an empty one."""

    model_config = _STRICT

    weight_bits: int
    input_bits: int | None = Field(None, description="None: the input stays float.")
    slots: int = Field(0, description="Of input scales that depend on time; 0: one scale.")
    sizes: tuple[int, ...] = Field((), description="Parts of the input channels with own scales; none: whole.")
    kind: Literal["plain", "stepwise"] = Field(
        "plain", description="`stepwise`: also a zero point for each slot (FSC)."
    )


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
