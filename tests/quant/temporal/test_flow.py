"""Dependence is followed through views, changes in place and shapes; what cannot be followed is said to be unknown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.clock import StepClock
from quant.temporal.discover import UnknownStructure, discover, examine


class Toy(nn.Module):
    """Three linears of width 4 on a timestep, a sample and pooled text, joined by a function."""

    def __init__(self, join: Callable[[Toy, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.join = join

    def forward(self, x: Tensor, t: Tensor, pooled: Tensor) -> Tensor:
        return self.join(self, x, t[:, None].expand(-1, 4).float(), pooled)


CALL = Call(
    {"x": torch.randn(2, 4), "t": torch.tensor([5, 7]), "pooled": torch.randn(2, 4)},
    StepClock.unknown(2),
    roles={"t": "time", "pooled": "pooled"},
)


def found(join: Callable[[Toy, Tensor, Tensor, Tensor], Tensor]) -> dict[str, str]:
    """Name to category, with a star where others read the leaf."""
    leaves = discover(Toy(join), CALL)
    return {leaf.name: leaf.category + ("*" if leaf.frontier else "") for leaf in leaves}


def test_a_chain_has_its_last_part_on_the_frontier() -> None:
    assert found(lambda m, x, t, p: x + m.third(m.second(m.first(t)))) == {
        "first": "E0",
        "second": "E0",
        "third": "E0*",
    }


def test_a_part_that_two_read_is_on_the_frontier_and_needs_a_table() -> None:
    assert found(lambda m, x, t, p: x + (e := m.first(t)) + m.second(e)) == {"first": "E0*", "second": "E0*"}


def test_pooled_text_makes_a_class_of_its_own() -> None:
    names = found(lambda m, x, t, p: x * m.third(m.first(t) + m.second(p)))
    assert names == {"first": "E0", "second": "E2", "third": "E2*"}


def test_what_sees_the_sample_is_not_temporal() -> None:
    assert found(lambda m, x, t, p: m.second(x + m.first(t))) == {"first": "E0*"}


def test_changes_in_place_and_views_are_followed() -> None:
    def join(m: Toy, x: Tensor, t: Tensor, p: Tensor) -> Tensor:
        mixed = torch.zeros(2, 4, dtype=x.dtype)
        mixed[:, :2] = x[:, :2]
        clean = torch.zeros(2, 4)
        clean[:, 1:].copy_(t[:, 1:])
        return torch.add(m.first(mixed) + m.second(clean.view(2, 2, 2).flatten(1)), m.third(p.add_(1)))

    assert found(join) == {"second": "E0*", "third": "E2*"}


def test_shapes_are_no_dependence() -> None:
    assert found(lambda m, x, t, p: x + m.first(torch.ones_like(x) * t)) == {"first": "E0*"}
    assert found(lambda m, x, t, p: x + m.first(torch.ones_like(x))) == {}


def test_a_part_that_also_ran_on_the_sample_is_not_temporal_and_hides_nothing() -> None:
    assert found(lambda m, x, t, p: m.second(m.second(m.first(t))) + m.second(x)) == {"first": "E0*"}


def test_an_output_that_only_padding_holds_is_found() -> None:
    def join(m: Toy, x: Tensor, t: Tensor, p: Tensor) -> Tensor:
        padded = nn.utils.rnn.pad_sequence(list(x.unbind(0)), batch_first=True)
        return torch.mul(m.second(padded), m.first(t))

    assert found(join) == {"first": "E0*"}


def test_several_outputs_all_count() -> None:
    names = found(lambda m, x, t, p: {"a": (x, [m.first(t)]), "b": m.second(t)})  # type: ignore[arg-type, return-value]
    assert names == {"first": "E0*", "second": "E0*"}


def test_a_forward_that_decides_by_the_sample_is_unknown_not_wrong() -> None:
    toy = Toy(lambda m, x, t, p: x + m.first(t) if float(x.sum()) > 0 else x)
    with pytest.raises(UnknownStructure, match="Toy: its data flow cannot be followed"):
        discover(toy, CALL)
    told = examine(toy, CALL)
    assert (told.leaves, told.per_request) == ((), frozenset())
    assert "cannot be followed" in told.unknown


def test_a_forward_may_decide_by_the_time() -> None:
    assert found(lambda m, x, t, p: x + (m.first(t) if float(t.max()) > 6 else m.second(t))) == {"first": "E0*"}


def test_tensors_made_in_inference_mode_are_followed() -> None:
    with torch.inference_mode():
        rows = {name: tensor + 0 for name, tensor in CALL.rows.items()}
        call = Call(rows, CALL.clock, roles=CALL.roles)
        leaves = discover(Toy(lambda m, x, t, p: x + m.first(t)), call)
    assert [leaf.name for leaf in leaves] == ["first"]


def test_a_module_keeps_weights_inputs_and_hooks_as_they_were() -> None:
    toy = Toy(lambda m, x, t, p: x * m.third(m.first(t) + m.second(p)))
    with torch.no_grad():
        before = call_module(toy, CALL).clone()
        discover(toy, CALL)
        assert torch.equal(call_module(toy, CALL), before)
    assert not any(layer._forward_hooks for layer in toy.modules())


def test_lists_of_rows_go_in_and_come_out() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.rest = nn.Linear(1, 4), nn.Linear(4, 4)

        def forward(self, x: list[Tensor], t: Tensor) -> tuple[list[Tensor]]:
            scale = self.time(t[:, None])
            return ([self.rest(row) * own for row, own in zip(x, scale, strict=True)],)

    call = Call({"x[]": torch.randn(3, 4), "t": torch.rand(3)}, StepClock.unknown(3), roles={"t": "time"})
    model = Listed()
    assert call_module(model, call).shape == (3, 4)
    assert [leaf.name for leaf in discover(model, call)] == ["time"]
    assert torch.equal(call_module(model, call)[1:2], call_module(model, call.take(torch.tensor([1]))))
