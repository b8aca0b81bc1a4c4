"""Readings: where inputs come from, what spoils them, which layers read the same tensor, and how much they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import quant
from quant.rotation.readings import Reading, Readings, read_strands
from quant.rotation.strands import Rows

C = 6


class Net(nn.Module):
    """[B, 5, C] to [B, 5, C] by one of several ways, all made of the same layers."""

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.bare = nn.LayerNorm(C), nn.LayerNorm(C, elementwise_affine=False)
        self.make, self.read, self.also = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.wide = nn.Linear(C, 2 * C)
        self.depth = nn.Conv2d(C, C, 3, padding=1, groups=C)
        self.conv, self.image = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3, padding=1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def reading(way: Callable[[Net, Tensor], Tensor]) -> Readings:
    call = quant.Call({"x": torch.randn(2, 5, C)}, quant.StepClock.unknown(2))
    return read_strands(Net(way).eval(), call)


def rows_of(found: Readings, name: str) -> set[Rows]:
    strand = found.layers[name].strand
    return set() if strand is None or not found.clear(strand.rows) else set(strand.rows)


MADE, NORMED = Rows("make", 0, C), Rows("norm", 0, C)


def test_what_moves_numbers_about_is_followed() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        made = net.make(x).reshape(-1, C).unflatten(0, (2, -1)).transpose(0, 1).contiguous().transpose(0, 1)
        one = net.read(functional.dropout(made, training=False)[:, None].squeeze(1))
        output: Tensor = one + net.also(made[:, 1:].to(x.dtype)).sum(1, keepdim=True)
        return output

    found = reading(way)
    assert rows_of(found, "read") == rows_of(found, "also") == {MADE}
    assert rows_of(found, "make") == set()
    strand = found.layers["read"].strand
    assert strand is not None
    assert strand.rotates


def test_norms_scale_and_do_not_rotate() -> None:
    found = reading(lambda net, x: net.read(net.norm(x)))
    strand = found.layers["read"].strand
    assert strand is not None
    assert (set(strand.rows), strand.rotates) == ({NORMED}, False)
    assert rows_of(reading(lambda net, x: net.read(net.bare(x))), "read") == set()


def test_scale_and_shift_of_a_linear() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        shift, scale = net.wide(x[:, 0]).chunk(2, dim=1)
        output: Tensor = net.read(net.norm(x) * (1 + scale[:, None]) + shift[:, None])
        return output

    found = reading(way)
    assert rows_of(found, "read") == {Rows("wide", 0, C), Rows("wide", C, 2 * C, 1.0)}


def test_the_linear_half_of_a_gated_unit() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        value, gate = net.wide(x).split(C, dim=-1)
        output: Tensor = net.read(value * functional.gelu(gate))
        return output

    assert rows_of(reading(way), "read") == {Rows("wide", 0, C)}


def test_sums_and_tokens_side_by_side_need_all_their_parts() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        one, other = net.make(x), net.also(x)
        output: Tensor = net.read(torch.cat([one + other, one], dim=1))
        return output

    found = reading(way)
    assert rows_of(found, "read") == {MADE, Rows("also", 0, C)}
    assert rows_of(reading(lambda net, x: net.read(net.make(x) + x)), "read") == set()


def test_other_readers_spoil() -> None:
    spoilers: dict[str, Callable[[Net, Tensor], Tensor]] = {
        "a norm": lambda net, x: net.read(made := net.make(x)) + net.norm(made),
        "a function": lambda net, x: net.read(made := net.make(x)) + functional.silu(made),
        "the output": lambda net, x: net.make(net.read(net.make(x))),
        "a residual": lambda net, x: net.read(made := net.make(x)) + made,
        "a cut of channels": lambda net, x: net.read(made := net.make(x)) + made[..., :1],
        "the other factor": lambda net, x: net.read((1 + net.make(x)) * net.also(x)) + net.read(net.also(x)),
    }
    for what, way in spoilers.items():
        found = reading(way)
        assert rows_of(found, "read") == set(), what
    assert rows_of(reading(lambda net, x: net.read(functional.relu(net.make(x)))), "read") == {MADE}


def test_looking_at_shapes_does_not_spoil() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        made = net.make(x)
        assert (made.shape[-1], made.dim(), made.size(1), made.is_floating_point()) == (C, 3, 5, True)
        output: Tensor = net.read(made * 0.5 / 2.0)
        return output

    assert rows_of(reading(way), "read") == {MADE}


def test_images_are_followed_and_grouped_convolutions_are_not() -> None:
    def image(net: Net, x: Tensor) -> Tensor:
        made = net.conv(x.transpose(1, 2)[..., None])
        output: Tensor = net.image(functional.interpolate(made, scale_factor=2.0, mode="nearest"))
        return output

    def grouped(net: Net, x: Tensor) -> Tensor:
        output: Tensor = net.image(net.depth(net.conv(x.transpose(1, 2)[..., None])))
        return output

    assert rows_of(reading(image), "image") == {Rows("conv", 0, C)}
    found = reading(grouped)
    assert rows_of(found, "depth") == set()
    strand = found.layers["image"].strand
    assert strand is not None
    assert (set(strand.rows), strand.rotates) == ({Rows("depth", 0, C)}, False)


def test_a_layer_that_reads_several_things_takes_nothing_back() -> None:
    found = reading(lambda net, x: net.read(net.make(x)) + net.read(net.norm(x)))
    assert rows_of(found, "read") == set()
    assert not found.clear([MADE])
    assert not found.clear([NORMED])
    assert len(found.layers["read"].inputs) == 2


def test_readers_of_one_tensor_are_told_from_others() -> None:
    def way(net: Net, x: Tensor) -> Tensor:
        output: Tensor = net.read(x) + net.also(x) + net.make(x.clone()) + net.wide(x[:, :3]).sum()
        return output

    layers = reading(way).layers
    assert layers["read"].inputs == layers["also"].inputs
    assert len({layers[name].inputs for name in ("read", "make", "wide")}) == 3
    assert (layers["read"].tokens, layers["read"].macs) == (5.0, 5.0 * C * C)
    assert (layers["wide"].tokens, layers["wide"].macs) == (3.0, 3.0 * C * 2 * C)
    assert "image" not in layers
    assert layers["also"] == Reading(layers["read"].inputs, None, 5.0, 5.0 * C * C)


def test_nothing_is_left_behind() -> None:
    net = Net(lambda net, x: net.read(net.norm(x)))
    read_strands(net, quant.Call({"x": torch.randn(1, 5, C)}, quant.StepClock.unknown(1)))
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in net.modules())
