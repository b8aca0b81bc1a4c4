"""The formats that a tuned layer may get, what they take in bytes, and the recipe that says so. Must not know any
model.

A format is a width of weights, or float, and a way to round inputs. Both cost on their own: widths bytes, ways time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from quant.clock import BRANCHES
from quant.layers import FloatLayer
from quant.packing import packed_bytes
from quant.recipe import FLOAT_BITS, Activations, Recipe, Rule, Scheme, Sensitive, Storage, Weights

Way = Literal["static", "step", "token", "float"]
"""How a layer's input is rounded: one scale, one for each step and branch, one for each token, or not at all."""

WAYS: Final[Mapping[Way, Activations]] = {
    "static": Activations(),
    "step": Activations(steps="each", branches="each"),
    "token": Activations(grain="token"),
    "float": Activations(bits=FLOAT_BITS),
}
WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8)
"""Bits of integer weights."""

STORAGES: Final[tuple[Storage, ...]] = ("int4", "int8", "bfloat16", "float32")
"""Of tables of temporal features, the smallest first."""


class Format(NamedTuple):
    """One layer's: bits of its weights, None where they stay float, and how its input is rounded."""

    bits: int | None
    way: Way

    @property
    def scheme(self) -> Scheme | None:
        """What a recipe calls it; None where the layer stays float."""
        if self.bits is None:
            return None
        return Scheme(weights=Weights(bits=self.bits), activations=WAYS[self.way])


FLOAT: Final = Format(None, "float")


def weight_bytes(layer: FloatLayer, bits: int, parts: int) -> int:
    """Bytes that a layer's weight of so many bits takes in a file with its scales, in so many parts; not the bias."""
    channels, inputs = layer.weight.shape[0], layer.weight.shape[1]
    split = [inputs // parts] * (parts - 1) + [inputs - inputs // parts * (parts - 1)]
    integers = sum(packed_bytes(layer.weight.numel() // inputs * own, bits) for own in split)
    return integers + 4 * parts * channels


def way_bytes(way: Way, slots: int, parts: int) -> int:
    """Bytes that the scales and zero points of a layer's inputs take, with a schedule of so many slots."""
    scales = {"static": 1, "step": slots * BRANCHES, "token": 0, "float": 0}[way]
    return 4 * parts * (scales + (way != "float"))


def tuned(base: Recipe, name: str, description: str, choice: Mapping[str, Format]) -> Recipe:
    """The base recipe with a format for each named layer; what is not named keeps what the base says.

    Layers of one format share a rule. The base's own rounding of sensitive layers is left out: the choice has it.
    """
    groups: dict[Format, list[str]] = {}
    for layer, form in choice.items():
        groups.setdefault(form, []).append(layer)
    rules = [_rule(form, tuple(layers)) for form, layers in sorted(groups.items(), key=lambda pair: pair[1])]
    changes = {"name": name, "description": description, "rules": (*rules, *base.rules), "sensitive": Sensitive()}
    return Recipe.model_validate(dict(base) | changes)


def _rule(form: Format, layers: tuple[str, ...]) -> Rule:
    scheme = form.scheme
    if scheme is None:
        return Rule(match=layers, keep="float", because="tuned: worth its bytes and time")
    return Rule(match=layers, weights=scheme.weights, activations=scheme.activations)


def parts_count(splits: Mapping[str, tuple[int, ...]], name: str) -> int:
    """In how many parts a layer's inputs are rounded."""
    return max(1, len(splits.get(name, ())))
