"""Channels: peaks by slot, even samples, rows of several slots, layers whose rows do not lead, refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.rotation.channels import ROWS_PER_SLOT, Channels, ChannelStatistics, observe_channels, outlier_ratio

Answer = Callable[[quant.Call], Tensor]


class Mixed(nn.Module):
    """[B, F, T, 6] at times [B]: a linear on tokens, one on frames as rows, one on a vector a row, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, 4)
        self.frames = nn.Linear(6, 4)
        self.vector = nn.Linear(6, 4)
        self.image = nn.Conv2d(6, 4, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        a = self.tokens(x).mean((1, 2)) + self.frames(input=x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean((1, 2))
        image = self.image(x.permute(0, 3, 1, 2)).mean((2, 3))
        output: Tensor = image + a + self.vector(x[:, 0, 0]) + 0 * time[:, None]
        return output


def make_call(times: list[float], seed: int, scale: float = 1.0) -> quant.Call:
    x = torch.randn(len(times), 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * scale
    clock = quant.StepClock.unknown(len(times))
    return quant.Call({"x": x, "time": torch.tensor(times)}, clock, roles={"time": "time"})


def observe(*calls: quant.Call, seed: int = 0, rows_per_slot: int = ROWS_PER_SLOT) -> ChannelStatistics:
    torch.manual_seed(0)

    def run(answer: Answer) -> None:
        for call in calls:
            answer(call)

    return observe_channels(Mixed().eval(), run, seed=seed, rows_per_slot=rows_per_slot)


def test_peaks_are_the_largest_magnitudes_of_each_slot() -> None:
    early, late = make_call([9.0, 9.0], 0), make_call([7.0, 7.0], 1, scale=3.0)
    seen = observe(early, late)
    assert seen.schedule == (9.0, 7.0)
    expected = torch.stack([call.rows["x"].abs().amax((0, 1, 2)) for call in (early, late)])
    for name in ("tokens", "frames", "image"):
        assert torch.equal(seen.layers[name].peaks, expected), name
    assert torch.equal(seen.layers["vector"].peaks[1], late.rows["x"][:, 0, 0].abs().amax(0))
    assert not seen.layers["unused"].ran
    assert seen.layers["unused"].peaks.shape == (2, 3)
    assert seen.layers["unused"].rows.shape == (0, 3)


def test_rows_of_several_slots_are_told_apart_where_they_lead() -> None:
    call = make_call([9.0, 7.0, 9.0], 0)
    seen, x = observe(call), call.rows["x"]
    assert torch.equal(seen.layers["tokens"].peaks[0], x[[0, 2]].abs().amax((0, 1, 2)))
    assert torch.equal(seen.layers["image"].peaks[1], x[1].abs().amax((0, 1)))
    assert len(seen.layers["vector"].samples[0]) == 2
    # frames come as rows: nobody can tell whose they are, so both slots count all of them
    assert torch.equal(seen.layers["frames"].peaks, x.abs().amax((0, 1, 2)).expand(2, -1))


def test_samples_are_rows_of_the_input_drawn_evenly_and_by_seed() -> None:
    calls = [make_call([5.0] * 4, seed) for seed in range(20)]
    pixels = torch.cat([call.rows["x"].reshape(-1, 6) for call in calls])
    first, again, other = (observe(*calls, seed=seed) for seed in (3, 3, 4))
    for name in ("tokens", "image"):
        kept = first.layers[name].samples[0]
        assert kept.shape == (ROWS_PER_SLOT, 6)
        place = [int((pixels == row).all(1).nonzero()) for row in kept]
        assert len(set(place)) == ROWS_PER_SLOT, "without repetition"
        assert 0.3 * len(pixels) < sum(place) / len(place) < 0.7 * len(pixels), "early calls weigh as late ones do"
        assert torch.equal(kept, again.layers[name].samples[0])
        assert not torch.equal(kept, other.layers[name].samples[0])
    assert first.layers["tokens"].rows.shape == (ROWS_PER_SLOT, 6)
    assert observe(*calls, rows_per_slot=7).layers["frames"].rows.shape == (7, 6)


def test_calibration_observes_channels_on_its_way() -> None:
    calls = [make_call([9.0], 0), make_call([7.0], 1)]
    torch.manual_seed(0)
    module = Mixed().eval()
    found = quant.calibrate(module, lambda answer: [answer(call) for call in calls], channels=True, seed=5).channels
    alone = observe(*calls, seed=5)
    assert found is not None
    assert found.schedule == alone.schedule
    for name, layer in alone.layers.items():
        assert torch.equal(found.layers[name].peaks, layer.peaks)
        assert torch.equal(found.layers[name].rows, layer.rows)
    assert all(not part._forward_pre_hooks for part in module.modules())


def test_outliers_stand_out() -> None:
    even = Channels(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.5, 1.0, 1.0, 0.0]]))
    odd = Channels(torch.tensor([[1.0, 1.0, 5.0, 0.0]]))
    never = Channels(torch.zeros(2, 3))
    assert outlier_ratio(ChannelStatistics((), {"even": even, "odd": odd, "never": never})) == 3.0
    assert outlier_ratio({"odd": odd.peaks[0]}) == 5.0
    assert outlier_ratio({}) == 1.0


def test_nan_and_silence_are_refused() -> None:
    broken = make_call([9.0], 0)
    broken.rows["x"][0, 0, 0, 2] = torch.nan
    with pytest.raises(quant.QuantError, match="layer tokens: the input holds NaN"):
        observe(broken)
    with pytest.raises(quant.QuantError, match="never called"):
        observe()
