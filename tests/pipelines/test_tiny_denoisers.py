"""Every family's tiny denoiser runs on its example, is the same for the same seed, and hears time, text and sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import quant
from pipelines.examples import EXAMPLES, example_call
from pipelines.families import UnsupportedModel
from pipelines.tiny_denoisers import TINY_DENOISERS, tiny_denoiser
from quant.backends.call import call_module


def with_other(call: quant.Call, role: str) -> quant.Call:
    """The call with every float argument of a role changed."""

    def change(part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor.roll(1, 0) * 0.5 + 0.1 if call.role(name) == role and tensor.is_floating_point() else tensor
            for name, tensor in part.items()
        }

    return replace(call, rows=change(dict(call.rows)))


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_runs_alike_for_the_same_seed_and_hears_its_arguments(name: str) -> None:
    module, call = tiny_denoiser(name, rows=2, seed=3)
    again, same = tiny_denoiser(name, rows=2, seed=3)
    assert call.signature() == same.signature()
    with torch.no_grad():
        output = call_module(module, call)
        assert torch.equal(output, call_module(again, same))
        assert output.shape[0] == call.count == 2
        assert output.isfinite().all()
        for role in {call.role(one) for one in call.rows}:
            if any(call.role(one) == role and tensor.is_floating_point() for one, tensor in call.rows.items()):
                assert not torch.equal(output, call_module(module, with_other(call, role))), role


@pytest.mark.parametrize("name", TINY_DENOISERS)
def test_rows_are_at_times_of_their_own(name: str) -> None:
    _, call = tiny_denoiser(name, rows=3)
    assert call.timestep is not None
    assert len({tuple(row.flatten().tolist()) for row in call.timestep}) == 3
    assert (call.timestep.ndim == 2) == TINY_DENOISERS[name].per_token


def test_every_example_has_a_tiny_model() -> None:
    assert {tiny.kind for tiny in TINY_DENOISERS.values()} == EXAMPLES.keys()


def test_unknown_names_are_told_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'dalle'; there are unet, unet-class, sd15"):
        tiny_denoiser("dalle")
    with pytest.raises(UnsupportedModel, match=r"no example call is known for Linear; there are ChromaTransformer2D"):
        example_call(torch.nn.Linear(1, 1))
