"""Smooths, rotates and rounds a layer anew for each range of time, as published. Must not know what module it is in.

TR-DQ (Shao et al., AAAI 2026; its code) and ViDiT-Q (Zhao et al., ICLR 2025). At range r, for input X and weight W:

    Y = Q_token(X / s_r G_r) Q_channel(W s_r G_r)^T + b
    s_r = m_r^a_r / max|W|^(1 - a_r),    m_r: running mean over the range's steps of the channels' max|X|
    G_r: DuQuant's rotation found on inputs of the range, block Hadamard, or none

Other than there: the integers of each range are stored, where the released code rounds float weights anew in every
forward; rotations are found on samples of all pictures, not on the first; a search (ours) gives each range the a_r of
the least error of the layer's output on its samples, with a block Hadamard matrix in place of G_r, which is not found
yet. A convolution's weight counts as one of [out * kh * kw, C] for samples, which are pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from quant.grid import along_first, to_integers, weight_scales
from quant.layers import FloatLayer, Quantized, QuantizedLayer
from quant.published import PublishedLayer, empty_of
from quant.ranges import TimeRanges
from quant.recipe import FLOAT_BITS, Scheme, Weights
from quant.recipe_parts import Rotation, Smoothing
from quant.report import LayerForm
from quant.rotation.channels import Channels
from quant.rotation.greedy import Blocks, greedy
from quant.rotation.hadamard import block_of, hadamard
from quant.rotation.smooth import factors, running_peaks, search_exponent, weight_peaks
from quant.rotation.transform import InputTransform, Transformed, axis_of
from quant.tokens import TokenSpread, round_between, round_tokens


@dataclass(frozen=True)
class PerRange:
    """How layers are rounded for each range of time.

    Attributes:
        rotation, smoothing: of the recipe.
        ranges: of the schedule.
        seed: of rotations.
    """

    rotation: Rotation
    smoothing: Smoothing
    ranges: TimeRanges
    seed: int = 0

    def rounded(self, name: str, layer: FloatLayer, scheme: Scheme, channels: Channels) -> tuple[Quantized, LayerForm]:
        """The layer with weights for each range that holds steps, and its form.

        A layer whose input nothing transforms has the same weights at all times, and is a plain one.

        Raises:
            ValueError: a weight is not finite, or an error is no number.
        """
        form = plain_form(scheme)
        whole = layer.weight.shape[1] == channels.peaks.shape[1]  # no grouped convolution
        rotates = self.rotation.method != "none" and any(fnmatchcase(name, match) for match in self.rotation.match)
        block = block_of(layer.weight.shape[1], self.rotation.block) if rotates and whole else 1
        smooths = self.smoothing.method != "none" and whole
        if block == 1 and not smooths:
            return _filled(layer, layer.weight.detach(), scheme.weights, form, channels.rows), form
        one = _Layer(layer, scheme.weights, form, channels, block, smooths)
        parts = [self._part(one, place, slots) for place, slots in enumerate(self.ranges.slots) if slots]
        places = self.ranges.places()
        told = {"kind": "published", "ranges": len(parts), "slots": len(places), "transform": parts[0].transform.form}
        return PublishedLayer(parts, places).eval(), form.model_copy(update=told)

    def _part(self, one: _Layer, place: int, slots: tuple[int, ...]) -> Transformed:
        """The layer at one range."""
        seen = [one.channels.samples[slot] for slot in slots if slot in one.channels.samples]
        x = torch.cat(seen) if seen else one.channels.rows  # it did not run in that range while calibrating
        smoothed = self._factors(one, x, one.channels.peaks[list(slots)], place) if one.smooths else None
        return one.behind(self._transform(one, x if smoothed is None else x / smoothed, smoothed), x)

    def _transform(self, one: _Layer, x: Tensor, smoothed: Tensor | None) -> InputTransform:
        """With the recipe's rotation, found on smoothed samples [M, C]."""
        if one.block > 1 and self.rotation.method == "greedy":
            return one.transform(smoothed, greedy(x, one.block, self.seed))
        return one.transform(smoothed, self._hadamard(one), randomized=one.block > 1)

    def _hadamard(self, one: _Layer) -> Blocks | None:
        return Blocks(hadamard(one.block, self.seed)) if one.block > 1 else None

    def _factors(self, one: _Layer, x: Tensor, peaks: Tensor, place: int) -> Tensor:
        """s_r [C]."""
        mean, own = running_peaks(peaks, self.smoothing.momentum), weight_peaks(one.layer.weight)
        if self.smoothing.method == "fixed":
            exponents = self.smoothing.exponents
            return factors(mean, own, exponents[place] if exponents else self.smoothing.exponent)
        blocks = self._hadamard(one)

        def error(candidate: Tensor) -> float:
            return _squared_error(one.layer, one.behind(one.transform(candidate, blocks), x), x)

        exponent, _ = search_exponent(mean, own, error)
        return torch.ones_like(mean) if exponent is None else factors(mean, own, exponent)


@dataclass(frozen=True)
class _Layer:
    """A layer and how it is rounded at any time."""

    layer: FloatLayer
    weights: Weights
    form: LayerForm
    channels: Channels
    block: int
    smooths: bool

    def transform(self, smoothed: Tensor | None, blocks: Blocks | None, *, randomized: bool = False) -> InputTransform:
        width, axis = self.layer.weight.shape[1], axis_of(self.layer)
        return InputTransform(width, smoothed, blocks, axis=axis, randomized=randomized)

    def behind(self, transform: InputTransform, x: Tensor) -> Transformed:
        """The layer rounded for inputs [M, C] that come through a transform."""
        weight, fed = transform.on_weight(self.layer.weight.detach()), _through(transform, x)
        return Transformed(_filled(self.layer, weight, self.weights, self.form, fed), transform)


def plain_form(scheme: Scheme) -> LayerForm:
    """The form that a scheme gives a layer at one time."""
    activations = scheme.activations
    return LayerForm(
        weight_bits=scheme.weights.bits,
        input_bits=None if activations.bits == FLOAT_BITS else activations.bits,
        grain=activations.grain,
        zero_point=activations.zero_point,
        offset_weights=scheme.weights.zero_point == "channel",
    )


def _filled(layer: FloatLayer, weight: Tensor, weights: Weights, form: LayerForm, fed: Tensor) -> QuantizedLayer:
    """A plain layer that holds a weight like the given layer's, rounded, to be fed samples [M, C]."""
    made = empty_of(layer, form, "cpu")
    if not isinstance(made, QuantizedLayer):
        raise TypeError(f"a layer for one range of time is plain, not {type(made).__name__}")
    if weights.zero_point == "channel":
        integers, scales, made.zero_points = asymmetric(weight, weights.bits)
    else:
        scales = weight_scales(weight, weights.bits, weights.range)
        integers = to_integers(weight, scales, weights.bits)
    made.set_weight(integers, scales, layer.bias)
    if form.input_bits is not None and form.zero_point == "shared":
        spread = TokenSpread()
        spread.add(fed, _token(layer))
        made.set_zero_point(spread.zero_point(form.input_bits))
    return made


def asymmetric(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, ...] as int8 integers of its shape, scales [out] float32 and zero points [out] int8.

    Each output channel spans its least to its greatest weight, zero included, in 2^bits integers around zero.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    rows = weight.detach().float().flatten(1)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("the weight holds NaN or infinity")
    levels, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, top = rows.amin(1).clamp(max=0.0), rows.amax(1).clamp(min=0.0)
    scales = torch.where(top > low, (top - low) / levels, 1.0)
    zero_points = (-low / scales).round()
    places = (weight.detach().float() / along_first(scales, weight)).round() + along_first(zero_points, weight)
    return (places.clamp(0, levels) - middle).to(torch.int8), scales, (zero_points - middle).to(torch.int8)


def sampled_error(layer: FloatLayer, quantized: Quantized, channels: Channels) -> float:
    """Relative error of a layer's output, for layers of `PerRange`, on the samples of its input."""
    lost = power = 0.0
    for slot, x in channels.samples.items():
        part = quantized.of_range(int(quantized.places[slot])) if isinstance(quantized, PublishedLayer) else quantized
        lost += _squared_error(layer, part, x)
        power += float((x @ _flat(layer.weight).T).double().square().sum())
    return math.sqrt(lost / max(power, 1e-30))


def _squared_error(layer: FloatLayer, part: nn.Module, x: Tensor) -> float:
    """Of the output for samples [M, C]. Those of a convolution are pixels, rounded as one picture."""
    inner = part.inner if isinstance(part, Transformed) else part
    if not isinstance(inner, QuantizedLayer):
        raise TypeError(f"{type(inner).__name__} holds no integers")
    fed = _through(part.transform, x) if isinstance(part, Transformed) else x
    zero_point, dims = inner.input_zero_point, _token(layer)
    if inner.by_token and zero_point is None:
        fed = round_between(fed, inner.activation_high, dims)
    elif inner.by_token and zero_point is not None:
        integers, scale = round_tokens(fed, int(zero_point), inner.activation_high, dims)
        fed = integers * scale
    return float((fed @ _flat(inner.weight).T - x @ _flat(layer.weight).T).double().square().sum())


def _token(layer: FloatLayer) -> tuple[int, ...]:
    """Dimensions of samples [M, C] that share a scale: pixels of a convolution are taken for one picture."""
    return (-1,) if isinstance(layer, nn.Linear) else (-2, -1)


def _through(transform: InputTransform, x: Tensor) -> Tensor:
    """Samples [M, C] transformed."""
    return transform(x if transform.axis == -1 else x[:, :, None, None]).reshape(x.shape)  # type: ignore[no-any-return]


def _flat(weight: Tensor) -> Tensor:
    """A weight [out, C, ...] as [out * ..., C]."""
    return weight.detach().float().movedim(1, -1).flatten(0, -2)
