"""The program gives what hooks on the whole model see, needs no other weights, and follows whatever forwards do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.clock import Moment
from quant.errors import QuantError
from quant.temporal.discover import TemporalLeaf, UnknownStructure, discover
from quant.temporal.layers import StepwiseLinear
from quant.temporal.program import TemporalProgram
from tests.quant.temporal.models import MODELS, TOKENS, make, make_call, opened, seen_by_hooks, skeleton


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    assert one
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_replay_equals_what_hooks_see(name: str, dtype: torch.dtype) -> None:
    tiny = make(name, dtype)
    leaves, program, _ = opened(tiny)
    for times in ([5.0, 250.0, 999.0], [7.0, 0.0, 1.0]):  # the second comes from the recording of the first
        call = tiny.call(torch.tensor(times))
        found = program.run(call)
        assert same(found, seen_by_hooks(tiny.module, call, list(found)))
    assert found.keys() == {leaf.name for leaf in leaves if leaf.frontier}


@pytest.mark.parametrize("name", MODELS)
def test_other_weights_may_be_missing(name: str) -> None:
    tiny = make(name)
    leaves, program, _ = opened(tiny)
    bare = TemporalProgram(skeleton(tiny.module, [leaf.name for leaf in leaves]), leaves)
    call = tiny.call(torch.tensor([5.0, 250.0]))
    assert same(bare.run(call), program.run(call))


def test_timesteps_of_tokens() -> None:
    tiny = make("wan")
    _, program, _ = opened(tiny)
    times = torch.full((2, TOKENS), 600.0)
    times[:, : TOKENS // 2] = 0.0
    call = tiny.call(times)
    found = program.run(call)
    assert same(found, seen_by_hooks(tiny.module, call, list(found)))
    assert found["condition_embedder.time_proj"].shape[:2] == (2, TOKENS)


def test_gradients_flow_to_what_a_leaf_is_run_by() -> None:
    tiny = make("unet")
    _, program, _ = opened(tiny)
    call = tiny.call(torch.tensor([5.0, 250.0]))
    first = program.layers()["time_embedding.linear_1"]
    assert isinstance(first, nn.Linear)
    weight = first.weight.detach().clone().requires_grad_()

    def apply(name: str, leaf: nn.Module, x: Tensor) -> Tensor:
        own = weight if name == "time_embedding.linear_1" else leaf.weight
        return torch.nn.functional.linear(x, own, leaf.bias)  # type: ignore[arg-type]

    found = program.run(call, apply)
    assert same({k: v.detach() for k, v in found.items()}, program.run(call))
    sum(output.square().sum() for output in found.values()).backward()  # type: ignore[union-attr]
    assert weight.grad is not None
    assert bool((weight.grad != 0).any())


def test_replay_takes_well_under_a_millisecond_a_leaf() -> None:
    tiny = make("unet")
    leaves, program, _ = opened(tiny)
    call = tiny.call(torch.tensor([5.0, 250.0]))
    program.run(call)
    took = []
    for _ in range(20):
        start = time.perf_counter()
        program.run(call)
        took.append(time.perf_counter() - start)
    assert min(took) / len(leaves) < 0.5e-3


class Toy(nn.Module):
    """h = linear_1 of time; `between` does as a test says; g_1 and g_2 add to the sample."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.linear_1, self.g_1, self.g_2 = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.body = nn.Linear(3, 3)
        self.between = between

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Tensor:
        h = self.linear_1(timestep[:, None].to(sample.dtype) * torch.arange(1, 5) / 100)
        h = self.between(h, self.body(sample), timestep)
        result: Tensor = self.body(sample) + self.g_1(h.sin()) + self.g_2(h.cos())
        return result


def in_place(h: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    h.mul_(2.0)
    h[:, :2] += 1.0
    kept = torch.zeros(h.shape)
    kept[:, 3:] = h[:, 3:]
    part = kept.view(-1)
    part.add_(h.reshape(-1))
    return torch.nn.functional.silu(kept, inplace=True)


def like_the_sample(h: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    return (h.double().type_as(sample) + torch.ones_like(sample).sum() + sample.new_zeros(1)).expand(sample.shape[0], 8)


def by_value(h: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    return h * 2 if float(timestep[0]) > 100 else h.abs()


def by_mask(h: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    h = h.clone()
    late = timestep > 100
    h[late] = h[late] * 3
    return h


def toy(between: Callable[..., Tensor]) -> tuple[Toy, tuple[TemporalLeaf, ...], TemporalProgram]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Toy(between).eval().requires_grad_(False)
    leaves = discover(module, toy_call([5.0]))
    return module, leaves, TemporalProgram(module, leaves)


def toy_call(times: list[float]) -> Call:
    return make_call({"sample": torch.ones(len(times), 3), "timestep": torch.tensor(times)})


@pytest.mark.parametrize("between", [in_place, like_the_sample, by_value, by_mask])
def test_whatever_lies_between_leaves(between: Callable[..., Tensor]) -> None:
    module, leaves, program = toy(between)
    assert {leaf.name for leaf in leaves} == {"linear_1", "g_1", "g_2"}
    for times in ([5.0, 7.0], [500.0, 7.0], [9.0, 800.0]):
        call = toy_call(times)
        assert same(program.run(call), seen_by_hooks(module, call, ["g_1", "g_2"]))


def test_where_values_decide_leaves_can_still_be_run_otherwise() -> None:
    _, _, program = toy(by_value)
    seen: list[str] = []

    def apply(name: str, leaf: nn.Module, *arguments: Any) -> Tensor:
        seen.append(name)
        output: Tensor = leaf(*arguments)
        return output * 0 if name == "g_2" else output

    plain, found = program.run(toy_call([500.0])), program.run(toy_call([500.0]), apply)
    assert torch.equal(found["g_1"], plain["g_1"])
    assert not found["g_2"].any()
    assert set(seen) == {"linear_1", "g_1", "g_2"}


def test_a_leaf_that_the_sample_reaches_is_missed_not_guessed() -> None:
    module, leaves, _ = toy(lambda h, sample, timestep: h + sample.mean())
    assert {leaf.name for leaf in leaves} == {"linear_1"}
    wrong = TemporalProgram(module, [*leaves, TemporalLeaf("g_1", "Linear", "E0", True, 1, 27, 3)])
    with pytest.raises(UnknownStructure, match="nothing known reaches g_1"):
        wrong.run(toy_call([5.0]))


def test_a_tensor_that_the_sample_was_written_into_is_not_known() -> None:
    def mixed(h: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
        joined = torch.zeros(h.shape[0], 8)
        joined[:, :3] = sample
        return joined + h

    module, leaves, _ = toy(mixed)
    wrong = TemporalProgram(module, [*leaves, TemporalLeaf("g_1", "Linear", "E0", True, 1, 27, 3)])
    with pytest.raises(UnknownStructure, match="nothing known reaches g_1"):
        wrong.run(toy_call([5.0]))


def test_weights_between_leaves_that_are_missing_are_told() -> None:
    class Scaled(Toy):
        def __init__(self) -> None:
            super().__init__(lambda h, sample, timestep: h)
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Tensor:
            return super().forward(sample, timestep * self.scale.sum())

    module = Scaled().requires_grad_(False)
    leaves = discover(module, toy_call([5.0]))
    names = [leaf.name for leaf in leaves]
    with pytest.raises(UnknownStructure, match="weights between them are missing"):
        TemporalProgram(skeleton(module, names), leaves).run(toy_call([5.0]))


def test_layers_without_weights_and_other_modules_are_refused() -> None:
    module, leaves, _ = toy(in_place)
    with pytest.raises(QuantError, match="linear_1 has no weights"):
        TemporalProgram(skeleton(module, []), leaves)
    with pytest.raises(QuantError, match="not the module of these temporal layers"):
        TemporalProgram(nn.Linear(2, 2), leaves)


def test_a_leaf_that_runs_twice_has_both_outputs() -> None:
    class Twice(Toy):
        def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Tensor:
            again: Tensor = self.g_1(self.linear_1(timestep[:, None] * torch.ones(4)))
            return super().forward(sample, timestep) + again

    module = Twice(lambda h, sample, timestep: h).requires_grad_(False)
    leaves = discover(module, toy_call([5.0]))
    found = TemporalProgram(module, leaves).run(toy_call([5.0, 6.0]))
    assert found.keys() == {"g_1", "g_1#2", "g_2"}
    assert not torch.equal(found["g_1"], found["g_1#2"])


def test_sources_name_what_is_read_directly() -> None:
    _, _, program = toy(in_place)
    assert {call.name: set(call.sources) for call in program.leaf_calls(toy_call([5.0]))} == {
        "linear_1": set(),
        "g_1": {"linear_1"},
        "g_2": {"linear_1"},
    }


def test_layers_read_the_moment_that_is_given() -> None:
    module, leaves, program = toy(in_place)
    stepwise = StepwiseLinear((3, 8), True, 8, 2, "cpu")
    stepwise.set_weight(torch.ones(3, 8, dtype=torch.int8), torch.ones(3), torch.zeros(3))
    stepwise.set_grids(torch.tensor([0.5, 0.07]), torch.tensor([100, 100]))
    module.g_1 = stepwise  # type: ignore[assignment]
    slot = torch.tensor([0, 1])
    moment = Moment(slot, slot, slot, slot == slot)
    found = program.run(toy_call([5.0, 5.0]), moment=moment)["g_1"]
    assert bool((found[0] % 0.5 == 0).all())
    assert not torch.equal(found[0], found[1])
    with pytest.raises(RuntimeError, match="outside of a call"):
        program.run(toy_call([5.0, 5.0]))
    assert leaves


def test_calls_in_inference_mode_can_be_played_with_gradients_later() -> None:
    _, _, program = toy(in_place)
    with torch.inference_mode():
        call = toy_call([5.0])
        first = {name: output.clone() for name, output in program.run(call).items()}
    weight = torch.ones(3, 8, requires_grad=True)
    found = program.run(call, lambda name, leaf, x: x @ weight.T if name == "g_1" else leaf(x))
    found["g_1"].sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert torch.equal(found["g_2"], first["g_2"])
