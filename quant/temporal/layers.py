"""Layers that stand where temporal layers stood: lookups, placeholders, and linears with a grid for each slot.

They read the moment from their holder and compute nothing of the model. Must not know how tables are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.bearer import DtypeBearer
from quant.clock import MomentHolder
from quant.errors import QuantError
from quant.layers import InputGrid, QuantizedLinear, replace_layers
from quant.recipe import Storage
from quant.temporal.plan import Lookup, TemporalPlan
from quant.temporal.shapes import dtype_of
from quant.temporal.tables import decode, empty, encode, in_chunks

READ_BY_MODELS = ("in_features", "out_features", "num_embeddings", "embedding_dim", "normalized_shape", "eps")
"""Attributes of layers that models read."""


class _StandIn(DtypeBearer):
    """What models read of a layer that is gone: an empty weight of its dtype, sizes; neither saved nor counted.

    Attributes:
        last: size of the output's last axis.
        by_index: whether the input has no feature axis, as an embedding's.
    """

    bearer = "weight"
    weight: Tensor

    def __init__(self, like: nn.Module, last: int, by_index: bool) -> None:
        super().__init__(dtype_of(like))
        self.bias = None
        self.last, self.by_index = last, by_index
        for name in READ_BY_MODELS:
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))

    def lead(self, x: Tensor) -> tuple[int, ...]:
        """The output's shape but for its last axis."""
        return tuple(x.shape if self.by_index else x.shape[:-1])


class FeatureStub(_StandIn):
    """In place of a temporal layer that only others read which are gone too: zeros of the right shape."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[..., last] zeros."""
        return torch.zeros((*self.lead(x), self.last), dtype=self.weight.dtype, device=x.device)


class Layout(NamedTuple):
    """How features lie.

    Attributes:
        width: numbers for one timestep.
        offset: where they begin in a moment's features.
        last: size of the output's last axis; `width` is that or, with several vectors for a timestep, a multiple.
        spread: whether the same vector serves several rows of the input, as frames of a video do.
        by_index: whether the input has no feature axis.
    """

    width: int
    offset: int
    last: int
    spread: bool = False
    by_index: bool = False


class FeatureLookup(_StandIn):
    """In place of a temporal layer whose output others read: the row of a table, or of the moment's features.

    Buffers, all saved (see `quant.temporal.tables`; absent without a table):
        table: [slots, stored width]; table_scale, table_offset: [slots, chunks] float32, of integers.
        mask: bool [slots, chunks], where the inner layer's output is taken instead; absent without an inner layer.
    """

    table: Tensor | None
    table_scale: Tensor | None
    table_offset: Tensor | None
    mask: Tensor | None

    def __init__(
        self,
        like: nn.Module,
        layout: Layout,
        buffers: Mapping[str, Tensor],
        *,
        inner: nn.Module | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Raises:
        ValueError: only one of `inner` and `mask` is given, or they come without a table.
        """
        super().__init__(like, layout.last, layout.by_index)
        if (inner is None) != (mask is None) or (inner is not None and not buffers):
            raise ValueError("a layer beside a table needs both the table and a mask that says where it counts")
        self.layout, self.inner = layout, inner
        self.holder = MomentHolder()
        for name in ("table", "table_scale", "table_offset"):
            self.register_buffer(name, buffers.get(name))
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        """[..., last] in the dtype of the layer that was here.

        Raises:
            QuantError: neither a table nor the moment has the features.
        """
        found = self._known(x, arguments, keywords)
        features = self.holder.now.features
        if features is not None:
            own = features[..., self.layout.offset : self.layout.offset + self.layout.width]
            found = own if found is None else torch.where(self.holder.now.known[..., None], found, own)
        if found is None:
            raise QuantError("features of a layer without a table must come with the moment of each call; it has none")
        return self._shaped(found, x).to(self.weight.dtype)

    def _known(self, x: Tensor, arguments: Any, keywords: Any) -> Tensor | None:
        """What table and inner layer say: [*slot, width] float32."""
        if self.table is None:
            return None
        slot = self.holder.now.slot
        scale = None if self.table_scale is None else self.table_scale[slot]
        offset = None if self.table_offset is None else self.table_offset[slot]
        found = decode(self.table[slot], scale, offset, self.layout.width)
        if self.inner is None or self.mask is None:
            return found
        chosen = self.mask[slot]
        computed = self.inner(x, *arguments, **keywords).float().reshape(found.shape)
        count = chosen.shape[-1]
        return torch.where(chosen[..., None], in_chunks(computed, count), in_chunks(found, count)).flatten(-2)

    def _shaped(self, found: Tensor, x: Tensor) -> Tensor:
        """[*slot, width] as the layer would have shaped it. Reads the input's shape only where it must: a graph in
        which nobody does can drop whatever computes the input.
        """
        axes = x.ndim if self.by_index else x.ndim - 1
        several = self.layout.width != self.last
        if self.layout.spread:
            found = found.reshape(-1, 1, self.last)
            lead = self.lead(x)
            return found.expand(-1, torch.Size(lead).numel() // found.shape[0], -1).reshape(*lead, self.last)
        if not several and axes == found.ndim - 1:
            return found
        return found.reshape(-1, self.last) if not several and axes == 1 else found.reshape(*self.lead(x), self.last)


class StepwiseLinear(QuantizedLinear):
    """A linear with a grid of its own for each slot: finite set calibration as published (FSC, TFMQ-DM, CVPR 2024).

    x_hat = clamp(round(x / s_t) + z_t, 0, 2^b - 1), back as s_t (x_hat - z_t), with (s_t, z_t) of the row's slot.

    Buffers: as `QuantizedLinear`, but input_scale [slots] float32 and input_zero_point [slots] int32.
    """

    def __init__(
        self, shape: tuple[int, ...], has_bias: bool, bits: int, slots: int, device: torch.device | str = "meta"
    ) -> None:
        super().__init__(shape, has_bias, InputGrid(bits), device)
        self.input_scale = torch.empty(slots, device=device)
        self.input_zero_point = torch.empty(slots, dtype=torch.int32, device=device)

    def set_grids(self, scales: Tensor, zero_points: Tensor) -> None:
        """Fills the input's buffers: [slots] float32 and [slots] integers."""
        self.input_scale, self.input_zero_point = scales.detach().float(), zero_points.to(torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]; rows follow the moment's slots."""
        if not self.rounds_input or self.input_scale is None or self.input_zero_point is None:
            return functional.linear(x, self.weight, self.bias)
        slot = self.holder.now.slot
        scale = per_row(self.input_scale[slot], x)
        zero_point = per_row(self.input_zero_point[slot].to(x.dtype), x)
        integers = torch.clamp(torch.round(x / scale) + zero_point, 0, self.activation_high)
        return functional.linear((integers - zero_point) * scale, self.weight, self.bias)


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """Values of slots [*slot] shaped so that they multiply an input [..., in] whose rows follow the slots in order."""
    if values.ndim == x.ndim - 1:
        return values[..., None]
    if x.ndim == 2:
        return values.reshape(-1, 1)
    return values.reshape(-1, *[1] * (x.ndim - 1))


def cut_leaves(
    module: nn.Module,
    plan: TemporalPlan,
    tables: Mapping[str, Tensor] | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    inner: Mapping[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """What takes the place of a plan's looked-up and dropped layers, by name; the module is not changed.

    Args:
        module: the denoiser; its parameters may be on the meta device.
        plan: says what becomes of each layer.
        tables: [slots, width] float32 by name; None leaves all tables without values, on the meta device.
        masks: bool [slots, chunks] by name, for layers with the strategy `select`; None as for tables.
        inner: what computes beside a table; the layer itself where none is named.

    Raises:
        QuantError: a table is missing or of the wrong shape, or the module has no such layer.
    """
    modules = dict(module.named_modules())
    missing = ({one.name for one in plan.lookups} | {one.name for one in plan.stubs}) - modules.keys()
    if missing:
        raise QuantError(f"the module lacks temporal layers of the plan: {', '.join(sorted(missing)[:5])}")
    cut: dict[str, nn.Module] = {
        stub.name: FeatureStub(modules[stub.name], stub.last, stub.by_index) for stub in plan.stubs
    }
    for one in plan.lookups:
        layout = Layout(one.width, one.offset, one.last, one.spread, one.by_index)
        buffers = _buffers(one, len(plan.schedule), tables)
        beside = (inner or {}).get(one.name, modules[one.name]) if one.strategy == "select" else None
        mask = _mask(one, len(plan.schedule), masks) if one.strategy == "select" else None
        cut[one.name] = FeatureLookup(modules[one.name], layout, buffers, inner=beside, mask=mask)
    return cut


def install(module: nn.Module, plan: TemporalPlan, tables: Mapping[str, Tensor] | None = None) -> None:
    """Puts lookups and stubs where a plan says, see `cut_leaves`; they need `bind`. Without tables, empty ones."""
    replace_layers(module, cut_leaves(module, plan, tables))


def _buffers(one: Lookup, slots: int, tables: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if one.storage is None:
        return {}
    if tables is None:
        return empty(one.storage, slots, one.width, one.chunks, "meta")
    table = tables.get(one.name)
    if table is None or table.shape != (slots, one.width):
        got = None if table is None else tuple(table.shape)
        raise QuantError(f"{one.name}: its table must be [{slots}, {one.width}], got {got}")
    return encode(table, one.storage, one.chunks)


def _mask(one: Lookup, slots: int, masks: Mapping[str, Tensor] | None) -> Tensor:
    if masks is None:
        return torch.empty(slots, one.chunks, dtype=torch.bool, device="meta")
    mask = masks.get(one.name)
    if mask is None or mask.shape != (slots, one.chunks) or mask.dtype is not torch.bool:
        raise QuantError(f"{one.name}: it is selected and needs a mask, bool [{slots}, {one.chunks}]")
    return mask


__all__ = ["FeatureLookup", "FeatureStub", "Layout", "StepwiseLinear", "Storage", "cut_leaves", "install"]
