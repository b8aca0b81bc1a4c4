"""Sharing attention outputs equals the long way on every family; what cannot share says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import TINY_DENOISERS
from quant.guidance.share import Patterns, attention_modules, matching, refusals, run_shared, shared_call
from tests.quant.guidance import by_hand as hand

FAMILIES = [name for name in TINY_DENOISERS if name != "minimax-h3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_sharing_equals_the_long_way(name: str) -> None:
    module, call = hand.paired(name, 3)
    names = tuple(attention_modules(module))
    assert names
    assert refusals(module, call) == {}
    for chosen in (names, names[-1:]):
        expected = hand.by_hand(module, call, chosen)
        answer = shared_call(module, replace(call, pattern=1), ((), chosen))
        assert quant.relative_error(answer, expected) < 1e-5
        assert quant.relative_error(answer, shared_call(module, call, ((),))) > 1e-4


def test_a_table_of_as_many_entries_as_rows_is_not_cut() -> None:
    module, call = hand.paired("qwen-image", 8)  # its rotary table has an entry for each of 16 image tokens
    names = tuple(attention_modules(module))
    answer = shared_call(module, replace(call, pattern=1), ((), names))
    assert quant.relative_error(answer, hand.by_hand(module, call, names)) < 1e-5


def test_without_a_pattern_nothing_changes() -> None:
    module, call = hand.paired("pixart-sigma", 2)
    with torch.no_grad():
        assert torch.equal(
            shared_call(module, call, ((), ("transformer_blocks.0.attn1",))), quant.call_module(module, call)
        )


def test_pairs_are_found_whatever_the_order() -> None:
    module, call = hand.paired("pixart-sigma", 3)
    names = ((), tuple(attention_modules(module)))
    mixed = replace(call.take(torch.tensor([5, 1, 4, 0, 3, 2])), pattern=1)
    assert mixed.pairs().tolist() == [[0, 2], [1, 3], [4, 5]]
    answer = shared_call(module, mixed, names)
    assert quant.relative_error(answer, hand.by_hand(module, mixed, names[1])) < 1e-5
    alone = shared_call(module, mixed.take(torch.tensor([3, 1])), names)
    assert quant.relative_error(alone, answer[[3, 1]]) < 1e-5


def with_clock(call: quant.Call, step: list[int], branch: list[int]) -> quant.Call:
    rows = len(branch)
    clock = quant.StepClock(torch.tensor(step), torch.full((rows,), 8), torch.tensor(branch))
    return replace(call.take(torch.arange(rows)), clock=clock, pattern=1)


@pytest.mark.parametrize(
    ("step", "branch", "reason"),
    [
        ([0] * 3, [0, 1, 1], "2 conditional and 1 unconditional rows of 3"),
        ([0] * 4, [0, 1, 2, 2], "1 conditional and 1 unconditional rows of 4"),
        ([0, 1, 1, 0], [0, 0, 1, 1], "of different steps"),
    ],
)
def test_rows_without_a_partner_are_refused(step: list[int], branch: list[int], reason: str) -> None:
    module, call = hand.paired("dit", 2)
    with pytest.raises(quant.BackendError, match=reason):
        shared_call(module, with_clock(call, step, branch), ((), ("transformer_blocks.0.attn1",)))


def test_unknown_patterns_and_modules_are_refused() -> None:
    module, call = hand.paired("dit", 1)
    with pytest.raises(quant.BackendError, match="no sharing pattern 3; known are 0 to 1"):
        shared_call(module, replace(call, pattern=3), ((), ("transformer_blocks.0.attn1",)))
    with pytest.raises(quant.BackendError, match="DiTTransformer2DModel has no attention module 'nowhere'"):
        shared_call(module, replace(call, pattern=1), ((), ("nowhere",)))


def test_names_are_matched_in_order() -> None:
    module, _ = hand.paired("pixart-sigma", 1)
    assert matching(module, ["*.1.*", "*attn1"]) == tuple(
        f"transformer_blocks.{name}" for name in ("0.attn1", "1.attn1", "1.attn2")
    )
    with pytest.raises(quant.BackendError, match=r"no attention module matches 'attn3'; there are transformer"):
        matching(module, ["attn3"])


class Projected(nn.Module):
    """Looks like attention."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_q(x) + self.to_k(x) + self.to_v(x)  # type: ignore[no-any-return]


class Odd(nn.Module):
    """Has attention on folded rows, twice in a call, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.folded, self.twice, self.never = Projected(), Projected(), Projected()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        folded = self.folded(x.reshape(-1, 3)).reshape_as(x)
        return (self.twice(self.twice(folded)),)


def test_modules_that_cannot_share_say_why() -> None:
    torch.manual_seed(0)
    module, clock = Odd(), quant.StepClock(torch.zeros(2).long(), torch.ones(2).long(), torch.tensor([0, 1]))
    call = quant.Call({"x": torch.randn(2, 4, 3)}, clock, pattern=1)
    assert refusals(module, call) == {
        "folded": "the rows of its input are not those of the call",
        "twice": "it runs 2 times in a call",
        "never": "it does not run",
    }
    with pytest.raises(quant.BackendError, match="attention module twice cannot share between branches: it runs 2"):
        shared_call(module, call, ((), ("twice",)))


def test_models_whose_rows_are_no_pictures_are_refused() -> None:
    module, call = hand.paired("minimax-h3", 2)  # its timesteps belong to tokens: a call cannot be taken apart
    reasons = set(refusals(module, call).values())
    assert len(reasons) == 1
    assert reasons.pop().startswith("the model does not run calls of two and four rows (")


def test_no_hooks_stay_behind_an_error() -> None:
    module, call = hand.paired("pixart-sigma", 1)
    names = tuple(attention_modules(module))
    broken = replace(call.take(call.pairs().T.flatten()), constants={"timestep": None}, pattern=1)
    refusals(module, replace(call, pattern=1))
    with pytest.raises((TypeError, AttributeError, quant.BackendError)):
        run_shared(module, broken, Patterns(((), names)))
    for part in module.modules():
        assert not part._forward_pre_hooks
        assert not part._forward_hooks
