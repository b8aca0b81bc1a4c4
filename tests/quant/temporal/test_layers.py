"""Lookups and stubs: what they answer, what models read of them, what is saved, and that OpenVINO takes them over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.backends import convert
from quant.backends.call import Call
from quant.backends.moment import run_timed, timed
from quant.backends.runtime import core, properties
from quant.clock import Moment, MomentHolder, StepClock
from quant.errors import QuantError
from quant.layers import bind, replace_layers
from quant.recipe import Storage
from quant.temporal.features import make_plan
from quant.temporal.layers import FeatureLookup, FeatureStub, Layout, StepwiseLinear, cut_leaves, install
from quant.temporal.tables import encode
from tests.quant.temporal.models import SCHEDULE, make, opened

VALUES = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
LAYOUT = Layout(width=12, offset=2, last=12)


def moment(slot: Tensor, known: Tensor | None = None, features: Tensor | None = None) -> Moment:
    row = slot if slot.ndim == 1 else slot[:, 0]
    return Moment(row, torch.zeros_like(row), slot, slot == slot if known is None else known, features)


def lookup(
    storage: Storage | None = "float32", layout: Layout = LAYOUT, like: nn.Module | None = None
) -> FeatureLookup:
    found = FeatureLookup(like or nn.Linear(6, 12), layout, encode(VALUES, storage, 3) if storage else {})
    found.holder = MomentHolder()
    return found


def test_a_row_is_its_slots() -> None:
    layer, slot = lookup(), torch.tensor([4, 0, 4])
    layer.holder.now = moment(slot)
    assert torch.equal(layer(torch.randn(3, 6)), VALUES[slot])


def test_rows_that_are_not_known_come_with_the_moment() -> None:
    layer, features = lookup(), torch.randn(3, 20)
    layer.holder.now = moment(torch.tensor([4, 0, 1]), torch.tensor([True, False, True]), features)
    assert torch.equal(layer(torch.randn(3, 6)), torch.stack([VALUES[4], features[1, 2:14], VALUES[1]]))


def test_without_a_table_all_rows_come_with_the_moment() -> None:
    layer, features = lookup(None), torch.randn(3, 20)
    layer.holder.now = moment(torch.tensor([4, 0, 1]), features=features)
    assert torch.equal(layer(torch.randn(3, 6)), features[:, 2:14])
    layer.holder.now = moment(torch.tensor([4, 0, 1]))
    with pytest.raises(QuantError, match="must come with the moment"):
        layer(torch.randn(3, 6))


@pytest.mark.parametrize("lead", [(6,), (3, 2)])
def test_tokens_with_slots_of_their_own(lead: tuple[int, ...]) -> None:
    layer, slot = lookup(), torch.tensor([[0, 1], [2, 3], [4, 0]])
    layer.holder.now = moment(slot)
    found = layer(torch.randn(*lead, 6))
    assert found.shape == (*lead, 12)
    assert torch.equal(found.reshape(6, 12), VALUES[slot.flatten()])


def test_several_vectors_for_one_timestep_and_one_for_several_frames() -> None:
    slot = torch.tensor([4, 0])
    several = lookup(layout=Layout(width=12, offset=0, last=4), like=nn.Linear(6, 4))
    several.holder.now = moment(slot)
    assert torch.equal(several(torch.randn(2, 3, 6)), VALUES[slot].reshape(2, 3, 4))
    frames = lookup(layout=Layout(width=12, offset=0, last=12, spread=True))
    frames.holder.now = moment(slot)
    assert torch.equal(frames(torch.randn(6, 6)), VALUES[[4, 4, 4, 0, 0, 0]])


def test_an_embeddings_place() -> None:
    layer = lookup(layout=LAYOUT._replace(by_index=True), like=nn.Embedding(9, 12))
    layer.holder.now = moment(torch.tensor([3, 1]))
    assert torch.equal(layer(torch.tensor([7, 7])), VALUES[[3, 1]])
    stub = FeatureStub(nn.Embedding(9, 12), 12, by_index=True)
    assert stub(torch.tensor([7, 7])).shape == (2, 12)
    assert stub.num_embeddings == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_read_what_they_read_of_real_layers(dtype: torch.dtype) -> None:
    like = nn.Linear(6, 12, dtype=dtype)
    for layer in (lookup(like=like), FeatureStub(like, 12, by_index=False)):
        assert next(iter(layer.parameters())).dtype is layer.weight.dtype is dtype
        assert getattr(layer, "in_features", None) == 6
        assert getattr(layer, "out_features", None) == 12
        assert sum(parameter.numel() for parameter in layer.parameters()) == 0
        assert "weight" not in layer.state_dict()
    stub = FeatureStub(like, 12, by_index=False)
    assert stub(torch.randn(2, 3, 6, dtype=dtype), 1, scale=2).shape == (2, 3, 12)
    assert stub(torch.randn(2, 6, dtype=dtype)).dtype is dtype


def test_an_empty_one_is_filled_strictly() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE}, storage="int4")
    tables = {one.name: torch.randn(5, one.width) for one in plan.lookups}
    full, empty = make("unet").module, make("unet").module
    install(full, plan, tables)
    install(empty, plan)
    assert full.state_dict().keys() == empty.state_dict().keys()
    assert all(one.weight.device.type == "cpu" for one in empty.modules() if isinstance(one, FeatureLookup))
    empty.load_state_dict(full.state_dict(), strict=True, assign=True)
    assert all(torch.equal(a, b) for a, b in zip(full.buffers(), empty.buffers(), strict=True))
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    with pytest.raises(RuntimeError, match=r"Missing key.*time_emb_proj\.table"):
        empty.load_state_dict({}, strict=True)


def test_where_the_mask_says_the_inner_layer_answers() -> None:
    inner, mask = nn.Linear(6, 12), torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    layer = FeatureLookup(nn.Linear(6, 12), LAYOUT, encode(VALUES, "float32", 3), inner=inner, mask=mask)
    slot, x = torch.tensor([0, 1, 2, 3, 4]), torch.randn(5, 6)
    layer.holder.now = moment(slot)
    computed = inner(x)
    for row, (own, found) in enumerate(zip(computed, layer(x), strict=True)):
        for chunk in range(3):
            piece = slice(4 * chunk, 4 * chunk + 4)
            assert torch.equal(found[piece], own[piece] if mask[row, chunk] else VALUES[row, piece])
    with pytest.raises(ValueError, match="needs both"):
        FeatureLookup(nn.Linear(6, 12), LAYOUT, encode(VALUES, "float32", 3), inner=inner)


@pytest.mark.parametrize("shape", [(3, 6), (3, 1, 6)])
def test_stepwise_linear_against_integer_arithmetic(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = StepwiseLinear((4, 6), True, 4, 5, "cpu")
    weight = torch.randint(-127, 128, (4, 6), generator=generator, dtype=torch.int8)
    layer.set_weight(weight, torch.rand(4, generator=generator), torch.randn(4, generator=generator))
    scales, zero_points = torch.rand(5, generator=generator) + 0.05, torch.randint(0, 16, (5,), generator=generator)
    layer.set_grids(scales, zero_points)
    x, slot = torch.randn(*shape, generator=generator), torch.tensor([4, 0, 4])
    layer.holder.now = moment(slot)
    found = layer(x).detach().reshape(3, 4)
    for row, s in enumerate(slot.tolist()):
        hat = torch.clamp(torch.round(x.reshape(3, 6)[row] / scales[s]) + zero_points[s], 0, 15)
        exact = (weight.double() @ (hat - zero_points[s]).double()) * layer.scales.double() * float(scales[s])
        assert torch.allclose(found[row].double(), exact + layer.bias.double(), atol=1e-5)  # type: ignore[union-attr]


def test_a_plan_that_does_not_fit_is_refused() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    with pytest.raises(QuantError, match="lacks temporal layers of the plan"):
        cut_leaves(make("dit").module, plan)
    tables = {one.name: torch.zeros(4, one.width) for one in plan.lookups}
    with pytest.raises(QuantError, match=r"its table must be \[5, 32\], got \(4, 32\)"):
        cut_leaves(tiny.module, plan, tables)
    selected = make_plan(program, leaves, example, {"timestep": SCHEDULE}, choices={plan.lookups[0].name: "select"})
    with pytest.raises(QuantError, match="needs a mask"):
        cut_leaves(tiny.module, selected, {n.name: torch.zeros(5, n.width) for n in plan.lookups}, masks={})


class Small(nn.Module):
    """[B, 4] and times to [B, 12], through a stub and a lookup."""

    def __init__(self, storage: Storage | None, selected: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.stub = nn.Linear(4, 12), FeatureStub(nn.Linear(6, 6), 6, by_index=False)
            self.selected, inner, mask = selected, None, None
            if selected:
                inner, mask = StepwiseLinear((12, 6), False, 8, 5, "cpu"), torch.rand(5, 3) > 0.5
                inner.set_weight(torch.randint(-127, 127, (12, 6), dtype=torch.int8), torch.rand(12) / 100, None)
                inner.set_grids(torch.rand(5) / 50 + 0.01, torch.randint(0, 200, (5,)))
            buffers = encode(VALUES, storage, 3) if storage else {}
            layout = Layout(width=12, offset=0, last=12)
            self.lookup = FeatureLookup(nn.Linear(6, 12), layout, buffers, inner=inner, mask=mask)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = torch.sin(time[:, None] * torch.arange(6))
        output: Tensor = self.body(x) * self.lookup(angles if self.selected else self.stub(angles))
        return output


@pytest.mark.parametrize(
    ("storage", "selected", "with_features"),
    [
        ("float32", False, False),
        ("bfloat16", False, True),
        ("int8", False, False),
        ("int4", False, True),
        ("int4", True, False),
        (None, False, True),
    ],
)
def test_openvino_takes_lookups_over(storage: Storage | None, selected: bool, with_features: bool) -> None:
    module = Small(storage, selected).eval().requires_grad_(False)
    bind(module, MomentHolder())
    x, times, features = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0]), torch.randn(3, 12)
    known = torch.tensor([True, False, True])
    now = moment(torch.tensor([4, 0, 2]), known, features if with_features else None)
    call = timed(Call({"x": x, "time": times}, StepClock.unknown(3), roles={"time": "time"}), now)
    graph = convert.convert(module, call)
    compiled = core().compile_model(graph, "CPU", properties(1))
    arrays = [call.tensors()[name].numpy() for name in convert.input_names(graph, call)]
    expected = run_timed(module, call.tensors(), call.constants).numpy()
    assert np.abs(compiled(arrays)[0] - expected).max() < 1e-5


def test_every_place_of_a_shared_layer_is_replaced() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    tiny.module.again = tiny.module.get_submodule("time_embedding.linear_1")
    replace_layers(tiny.module, cut_leaves(tiny.module, plan))
    assert isinstance(tiny.module.again, FeatureStub)
