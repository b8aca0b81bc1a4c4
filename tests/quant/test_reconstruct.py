"""Reconstruction: better than nearest, the same for the same seed, resumed to the same bytes, clear about bad input."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.backends.call import call_module
from quant.layers import InputGrid, Quantized, empty_like, parts_of, replace_layers
from quant.learn import weight_bits
from quant.recipe_parts import Rounding
from quant.reconstruct import reconstruct
from quant.samples import Samples
from quant.stages import Stages
from tests.quant.blocknet import make_block_net, nearest, samples_of

QUICK = Rounding(method="adaround", iterations=60, batch=16, learning_rate=0.05)
UNITS = ["embed", "blocks.0", "attentions.0", "middle", "blocks.1"]
SPLITS = {"blocks.1.conv1": (8, 8), "blocks.1.shortcut": (8, 8)}


def integers(quantized: dict[str, Quantized]) -> list[Tensor]:
    return [part.integers for layer in quantized.values() for part in parts_of(layer)]


def output_error(net: nn.Module, quantized: dict[str, Quantized]) -> float:
    """Relative error of the output on rows that were not reconstructed on."""
    copied, (call,) = copy.deepcopy(net), samples_of(net, 90).calls
    with torch.no_grad():
        truth = call_module(copied, call)
        replace_layers(copied, quantized)
        return quant.relative_error(call_module(copied, call), truth)


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("grain", ["block", "layer"])
@pytest.mark.parametrize("splits", [{}, SPLITS], ids=["whole", "split"])
def test_better_than_nearest(grain: str, splits: dict[str, tuple[int, ...]]) -> None:
    net = make_block_net()
    plain, learned = nearest(net, splits=splits), nearest(net, splits=splits)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rounding = QUICK.model_copy(update={"iterations": 200, "learning_rate": 0.1, "grain": grain})
    found = reconstruct(net, learned, samples_of(net), rounding)
    assert list(found.learned) == UNITS if grain == "block" else len(found.learned) == 11
    assert not found.left
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"units that were reconstructed: {len(found.learned)}; relative errors left in")
    assert output_error(net, learned) < 0.9 * output_error(net, plain)
    steps = torch.cat([(a.int() - b.int()).flatten() for a, b in zip(integers(learned), integers(plain), strict=True)])
    assert steps.abs().max() == 1
    assert all(weight_bits(part) <= 4 for layer in learned.values() for part in parts_of(layer))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_losses_are_of_what_is_left_there() -> None:
    net = make_block_net()
    quantized, samples = nearest(net), samples_of(net)
    found = reconstruct(net, quantized, samples, QUICK).learned["blocks.0"]
    (call,) = samples.calls
    outputs: list[Tensor] = []
    handle = net.blocks[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        call_module(net, call)
        replace_layers(net, quantized)
        call_module(net, call)
    handle.remove()
    assert found.loss == pytest.approx(float((outputs[0] - outputs[1]).square().sum(1).mean()), rel=1e-4)
    assert found.power == pytest.approx(float(outputs[0].square().sum(1).mean()), rel=1e-4)
    assert found.relative == pytest.approx(quant.relative_error(outputs[1], outputs[0]), rel=0.2)


def test_the_seed_decides_the_bytes() -> None:
    net = make_block_net()
    made: list[list[Tensor]] = []
    for seed in (1, 1, 2):
        quantized = nearest(net)
        with torch.inference_mode(seed == 1 and len(made) == 1):  # whatever the caller does
            reconstruct(net, quantized, samples_of(net), QUICK, seed=seed)
        made.append(integers(quantized))
    assert equal(made[0], made[1])
    assert not equal(made[0], made[2])


def test_forwards_that_start_anew_give_the_same_bytes() -> None:
    net = make_block_net()
    made: list[list[Tensor]] = []
    for memory in (1 << 30, 220_000):
        quantized = nearest(net)
        reconstruct(net, quantized, samples_of(net), QUICK, memory_bytes=memory)
        made.append(integers(quantized))
    assert equal(*made)


@pytest.mark.parametrize("killed_at", [0, 3, 7])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, killed_at: int) -> None:
    net, rounding = make_block_net(), QUICK.model_copy(update={"activation_iterations": 20})
    whole, broken, resumed = (nearest(net, inputs=True) for _ in range(3))
    expected = reconstruct(net, whole, samples_of(net), rounding)
    calls = []

    def kill(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))
        if len(calls) == killed_at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(net, broken, samples_of(net), rounding, stages=Stages(tmp_path, "k"), progress=kill)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == min(killed_at, 5) + max(0, killed_at - 6)
    stages = Stages(tmp_path, "k")
    assert reconstruct(net, resumed, samples_of(net), rounding, stages=stages) == expected
    assert equal(integers(whole), integers(resumed))
    assert equal(scales(whole), scales(resumed))
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in before.items())
    assert len(list(tmp_path.iterdir())) == 10
    assert stages.total_seconds > 0
    assert all("forward" not in part.__dict__ for part in net.modules())


def test_a_finished_run_is_taken_up_without_samples(tmp_path: Path) -> None:
    net, whole, resumed = make_block_net(), *(nearest(make_block_net()) for _ in range(2))
    expected = reconstruct(net, whole, samples_of(net), QUICK, stages=Stages(tmp_path, "k"))
    never = Samples.later(lambda: pytest.fail("samples were drawn"))
    example = samples_of(net, 1).calls[0]
    assert reconstruct(net, resumed, never, QUICK, stages=Stages(tmp_path, "k"), example=example) == expected
    assert equal(integers(whole), integers(resumed))
    with pytest.raises(pytest.fail.Exception, match="were drawn"):
        reconstruct(net, nearest(net), never, QUICK, stages=Stages(tmp_path, "other"), example=example)


@pytest.mark.parametrize("what", ["weights", "scales"])
@pytest.mark.parametrize("fault", ["far", "shape", "missing", "wide"])
def test_stages_of_other_layers_are_done_again(
    tmp_path: Path, what: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    net, rounding = make_block_net(), QUICK.model_copy(update={"activation_iterations": 20})
    whole, resumed = nearest(net, inputs=True), nearest(net, inputs=True)
    expected = reconstruct(net, whole, samples_of(net), rounding, stages=Stages(tmp_path, "k"))
    stage = f"{what}.blocks.0"
    good, stored = Stages(tmp_path, "k").load(stage), Stages(tmp_path, "k").load(stage)
    assert good is not None and stored is not None  # for mypy
    name = "integers.blocks.0.conv1.0"
    if fault == "far":
        stored[name] = stored[name].flip(0)
    elif fault == "shape":
        stored[name] = stored[name].flatten()
    elif fault == "missing":
        del stored[name]
    else:  # as if made for more bits
        stored[name] = (stored[name].int() * 16).clamp(-127, 127).to(torch.int8)
    Stages(tmp_path, "k").save(stage, stored, 1.0)
    with caplog.at_level(logging.WARNING):
        found = reconstruct(net, resumed, samples_of(net), rounding, stages=Stages(tmp_path, "k"))
    assert f"the stage {stage} is of other layers and done again: {name} " in caplog.text
    assert len(caplog.records) == 1
    assert found == expected
    assert equal(integers(whole), integers(resumed))
    assert equal(scales(whole), scales(resumed))
    again = Stages(tmp_path, "k").load(stage)
    assert again is not None and again.keys() == good.keys()
    assert all(torch.equal(again[name], good[name]) for name in good)


def test_stages_hold_no_integers_out_of_range_and_no_broken_scales(tmp_path: Path) -> None:
    net, rounding = make_block_net(), QUICK.model_copy(update={"activation_iterations": 5})
    whole = nearest(net, inputs=True)
    expected = reconstruct(net, whole, samples_of(net), rounding, stages=Stages(tmp_path, "k"))
    weights, learned = (Stages(tmp_path, "k").load(f"{what}.middle") for what in ("weights", "scales"))
    assert weights is not None and learned is not None  # for mypy
    plain = parts_of(nearest(net)["middle"])[0].integers
    assert int(plain.max()) == 7
    weights["integers.middle.0"] = (plain + (plain == 7)).to(torch.int8)  # one more than nearest, but no 4-bit integer
    learned["input_scale.middle.0"] = -learned["input_scale.middle.0"]
    Stages(tmp_path, "k").save("weights.middle", weights, 1.0)
    Stages(tmp_path, "k").save("scales.middle", learned, 1.0)
    resumed = nearest(net, inputs=True)
    assert reconstruct(net, resumed, samples_of(net), rounding, stages=Stages(tmp_path, "k")) == expected
    assert equal(integers(whole), integers(resumed))
    assert equal(scales(whole), scales(resumed))


def test_rows_without_room_in_memory_are_told_also_when_resumed(tmp_path: Path) -> None:
    net = make_block_net()
    made = [
        reconstruct(net, nearest(net), samples_of(net), QUICK, stages=Stages(tmp_path, "k"), memory_bytes=20_000)
        for _ in range(2)
    ]
    missed = {name: unit.missed for name, unit in made[0].learned.items()}
    assert missed == {"embed": 0, "blocks.0": 48, "attentions.0": 48, "middle": 48, "blocks.1": 48}  # of 60
    told = "blocks.0: 48, attentions.0: 48, middle: 48, blocks.1: 48"
    assert made[0].notes[-1] == f"units that learned without rows that memory had no room for: 4 ({told})"
    assert made[0] == made[1]


def scales(quantized: dict[str, Quantized]) -> list[Tensor]:
    return [
        part.input_scale for layer in quantized.values() for part in parts_of(layer) if part.input_scale is not None
    ]


def test_progress_counts_units() -> None:
    net = make_block_net()
    told: list[tuple[str, int, int]] = []
    rounding = QUICK.model_copy(update={"iterations": 2, "activation_iterations": 2})
    reconstruct(
        net,
        nearest(net, inputs=True),
        samples_of(net, 16),
        rounding,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert told == [(f"reconstructing {what}", done, 5) for what in ("weights", "scales") for done in range(6)]


def test_input_scales_learn_too() -> None:
    net = make_block_net()
    fixed, learned = nearest(net, inputs=True, splits=SPLITS), nearest(net, inputs=True, splits=SPLITS)
    for layer in (*fixed.values(), *learned.values()):
        for part in parts_of(layer):
            assert part.input_scale is not None
            part.input_scale = part.input_scale * 3  # coarse, so that there is something to learn
    reconstruct(net, fixed, samples_of(net), QUICK)
    found = reconstruct(net, learned, samples_of(net), QUICK.model_copy(update={"activation_iterations": 60}))
    assert equal(integers(fixed), integers(learned))
    ratios = [float(a / b) for a, b in zip(scales(learned), scales(fixed), strict=True)]
    assert len(ratios) == 13
    assert min(ratios) < 0.8
    assert output_error(net, learned) < 0.95 * output_error(net, fixed)
    assert list(found.learned) == UNITS
    assert all(part.rounds_input for layer in learned.values() for part in parts_of(layer))


def test_scales_that_follow_time_are_not_learned() -> None:
    net = make_block_net()
    quantized = nearest(net, inputs=True)
    for part in parts_of(quantized["middle"]):
        part.set_time_grids(torch.ones(2, 3), 128)
    rounding = QUICK.model_copy(update={"activation_iterations": 5})
    with pytest.raises(quant.QuantError, match="follow time are not learned, as middle has"):
        reconstruct(net, quantized, samples_of(net), rounding)
    assert reconstruct(net, quantized, samples_of(net), QUICK).learned.keys() == set(UNITS)


def test_units_that_have_nothing_to_learn_stay() -> None:
    net = make_block_net()
    with torch.no_grad():
        net.first.weight.zero_()
        net.first.bias.zero_()  # type: ignore[union-attr]
        net.blocks[0].norm.bias.zero_()  # type: ignore[union-attr, operator]
        net.blocks[0].norm.weight.zero_()  # type: ignore[union-attr, operator]
        net.embed.weight.zero_()
        net.embed.bias.zero_()
    made = nearest_of_zero(net)
    before = [part.clone() for part in integers(made)]
    assert reconstruct(net, made, samples_of(net), QUICK).learned["blocks.0.conv1"].loss == 0.0
    assert equal(before, integers(made))


def nearest_of_zero(net: nn.Module) -> dict[str, Quantized]:
    layer = net.get_submodule("blocks.0.conv1")
    assert isinstance(layer, nn.Conv2d)
    quantized = empty_like(layer, InputGrid(None), "cpu")
    for part in parts_of(quantized):
        steps = torch.full((8,), 0.05)
        part.set_weight((layer.weight.detach() / 0.05).round().clamp(-8, 7).to(torch.int8), steps, layer.bias)
    return {"blocks.0.conv1": quantized}


def test_a_unit_that_cannot_be_cut_into_rows_is_told_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turned, self.plain = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, sample: Tensor) -> Tensor:
            turned: Tensor = self.turned(sample.transpose(0, 1))
            plain: Tensor = self.plain(sample)
            return turned.transpose(0, 1) + plain

    net = Turned().eval()
    made: dict[str, Quantized] = {}
    for name in ("turned", "plain"):
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        quantized = empty_like(layer, InputGrid(None), "cpu")
        for part in parts_of(quantized):
            whole = (layer.weight.detach() / 0.1).round().clamp(-8, 7).to(torch.int8)
            part.set_weight(whole, torch.full((3,), 0.1), layer.bias)
        made[name] = quantized
    call = quant.Call({"sample": torch.randn(6, 4, 3)}, quant.StepClock.unknown(6))
    with caplog.at_level(logging.WARNING):
        found = reconstruct(net, made, Samples((call,)), QUICK)
    assert list(found.learned) == ["plain"]
    why = "its arguments or outputs cannot be cut into rows"
    assert found.left == {"turned": why}
    assert f"units that were not reconstructed: 1 (turned: {why})" in found.notes
    assert f"turned stays as it is, not reconstructed: {why}" in caplog.text


def test_bad_input_is_named() -> None:
    net = make_block_net()
    quantized = nearest(net)
    assert reconstruct(net, {}, None, QUICK).notes == ()
    for samples in (None, Samples(())):
        with pytest.raises(quant.QuantError, match="reconstruction needs samples"):
            reconstruct(net, quantized, samples, QUICK)
    bad = samples_of(net, 16)
    bad.calls[0].rows["sample"][2, 0, 0, 0] = float("inf")
    with pytest.raises(quant.QuantError, match=r"blocks\.0: its float output holds NaN or infinity"):
        reconstruct(net, quantized, bad, QUICK)
    with torch.no_grad():
        net.middle.weight[0, 0] = float("nan")
    with pytest.raises(quant.QuantError, match=r"middle: .*NaN"):
        reconstruct(net, quantized, samples_of(make_block_net(), 16), QUICK)
    assert all("forward" not in part.__dict__ for part in net.modules())
