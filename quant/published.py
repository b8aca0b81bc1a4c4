"""A layer with weights of its own for each range of time, and empty layers of any form. Knows no module.

The published form of TR-DQ (Shao et al., AAAI 2026; its code) and ViDiT-Q (Zhao et al., ICLR 2025), for comparison.
Only the reference backend runs it, and all copies of the weights are stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.clock import MomentHolder
from quant.errors import QuantError
from quant.layers import Composite, FloatLayer, InputGrid, Quantized, QuantizedLayer, empty_like, parts_of
from quant.report import LayerForm
from quant.rotation.transform import InputTransform, Transformed


class PublishedLayer(Composite):
    """A layer with a transform of its input and weights for each range of time; rows go by that of their range.

    Buffers (all saved):
        places: [slots] int64, which range each slot is in.
        bias: [out] float32, at all ranges, or absent.

    Attributes:
        parts: for each range the layer behind its transform, without a bias.
        holder: where the moment is found; set by `bind`.
    """

    places: Tensor
    bias: Tensor | None

    def __init__(self, parts: Sequence[Transformed], places: Tensor) -> None:
        """Takes over the bias of the parts, which have the same one."""
        super().__init__(parts)
        self.holder = MomentHolder()
        self.register_buffer("places", places)
        inner = parts_of(self)
        self.register_buffer("bias", inner[0].bias)
        for part in inner:
            part.bias = None

    def of_range(self, place: int) -> Transformed:
        """The layer at one range of time."""
        return self.parts[place]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The weight at the first range, behind its transform; some models read its dtype."""
        return self.of_range(0).weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Raises:
            QuantError: rows of several ranges come in an input whose first dimension is not the call's rows.
        """
        which = self.places[self.holder.now.row]
        ranges = sorted(set(which.tolist()))
        if len(ranges) > 1 and x.shape[0] != len(which):
            raise QuantError("rows of several ranges of time cannot be told apart in this input: run rows alone")
        if len(ranges) == 1:
            output: Tensor = self.of_range(ranges[0])(x)
        else:
            order = torch.cat([torch.nonzero(which == place).flatten() for place in ranges])
            output = torch.cat([self.of_range(place)(x[which == place]) for place in ranges])[order.argsort()]
        return output if self.bias is None else output + parts_of(self)[0].along_outputs(self.bias)


def empty_of(layer: FloatLayer, form: LayerForm, device: torch.device | str = "meta") -> Quantized:
    """A quantized layer of a form, plain or published, with nothing in it yet.

    Raises:
        ValueError: the form does not fit the layer.
    """
    if form.kind == "plain":
        grid = InputGrid(form.input_bits, form.slots, form.grain, form.zero_point)
        return _with_offsets(empty_like(layer, grid, device, sizes=form.sizes), form)
    if form.kind != "published" or form.transform is None or form.ranges < 1 or form.slots < 1:
        raise ValueError(f"no empty layer can be made of the form {form}")
    grid = InputGrid(form.input_bits, 0, form.grain, form.zero_point)
    parts = []
    for _ in range(form.ranges):
        inner = _with_offsets(empty_like(layer, grid, device), form)
        parts.append(Transformed(inner, InputTransform.empty(form.transform)))
    return PublishedLayer(parts, torch.empty(form.slots, dtype=torch.int64, device=device))


def _with_offsets(layer: Quantized, form: LayerForm) -> Quantized:
    if form.offset_weights:
        if not isinstance(layer, QuantizedLayer):
            raise ValueError("the parts of a split layer have no zero points of output channels")
        layer.zero_points = torch.empty_like(layer.scales, dtype=torch.int8)
    return layer
