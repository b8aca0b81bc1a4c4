"""Layers that share one change of their inputs: what it is, where it goes, carrying it out. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from quant.rotation.attach import attach_
from quant.rotation.choose import Chooser, Rotated, Smoothed
from quant.rotation.fold import Fold, fold_
from quant.rotation.hadamard import block_of
from quant.rotation.report import LayerRotation, Place
from quant.rotation.transform import InputTransform, axis_of


@dataclass
class Bundle:
    """Layers with one change of their inputs.

    Attributes:
        names: the layers that a recipe quantizes; a fold may reach others too, in which it is taken back alike.
        scale, rotate: where factors and a rotation can be folded; both are of these layers.
        smoothed, rotated: what was chosen; None: not done.
        turned: which of the layers are rotated: all where it is folded.
        gain: what rotating is worth, where that was asked.
        because: why they are not rotated.
        common: factors alone are folded, the same for layers of many inputs; nothing is computed.
    """

    names: tuple[str, ...]
    scale: Fold | None = None
    rotate: Fold | None = None
    smoothed: Smoothed | None = None
    rotated: Rotated | None = None
    turned: tuple[str, ...] = ()
    gain: float | None = None
    because: str = ""
    common: bool = False

    def choose(self, chooser: Chooser) -> None:
        """Fills in what is to be done, by the chooser's recipe."""
        if self.common:
            self.smoothed, self.because = chooser.factors(self.names, 1), "factors of many blocks, folded, do as well"
            return
        within, how = self._within(chooser), chooser.recipe.rotation
        if not self.turned or how.online == "helpful":
            self.smoothed = chooser.factors(self.names, 1)
        if not self.turned:
            return
        # inputs become (x / s) G: where G is folded, s cannot come later
        smoothed = None if self.rotate and not self.scale else chooser.factors(self.names, within)
        rotated = chooser.rotation(self.turned, smoothed, within)
        if how.online == "helpful":
            self.gain = chooser.gain(self.turned, self.smoothed, smoothed, rotated)
            least = 0.0 if self.rotate else how.least_gain
            if self.gain < least:
                self.turned, self.because = (), _not_helpful(self.gain, least)
                return
        self.smoothed, self.rotated = smoothed, rotated

    def _within(self, chooser: Chooser) -> int:
        """How many channels a rotation may mix; notes which layers are rotated, and why others are not."""
        how, width = chooser.recipe.rotation, chooser.width(self.names[0])
        matched = tuple(name for name in self.names if any(fnmatchcase(name, match) for match in how.match))
        if how.method == "none" or not matched:
            self.because = "" if how.method == "none" else "the recipe rotates other layers"
            return width
        if self.rotate is not None and block_of(self.rotate.within, how.block) > 1:
            self.turned = self.names
            return self.rotate.within
        self.rotate = None
        if block_of(width, how.block) < 2:
            self.because = f"no power of two divides its {width} channels"
        elif how.online == "none":
            self.because = "it cannot be folded, and the recipe computes no rotation online"
        else:
            self.turned = matched
        return width

    def transform(self, name: str, chooser: Chooser, *, online: bool = False) -> InputTransform:
        """What one layer's input goes through: along the last axis and in all, or only what is computed online."""
        axis = axis_of(chooser.layers[name]) if online else -1
        factors = None if self.smoothed is None or (online and self.scale) else self.smoothed.factors
        rotated = None if name not in self.turned or (online and self.rotate) else self.rotated
        blocks, randomized = (None, False) if rotated is None else rotated
        return InputTransform(chooser.width(name), factors, blocks, axis=axis, randomized=randomized)

    def fold_(self, module: nn.Module, chooser: Chooser) -> None:
        """Puts into weights what can be: factors first, as inputs become (x / s) G."""
        axis, width = axis_of(chooser.layers[self.names[0]]), chooser.width(self.names[0])
        if self.scale is not None and self.smoothed is not None:
            fold_(module, self.scale, InputTransform(width, self.smoothed.factors, axis=axis))
        if self.rotate is not None and self.rotated is not None:
            blocks, randomized = self.rotated
            fold_(module, self.rotate, InputTransform(width, blocks=blocks, axis=axis, randomized=randomized))

    def online(self, chooser: Chooser) -> dict[str, InputTransform]:
        """What remains to be computed before each layer: one transform for those that read the same tensors."""
        found: dict[str, InputTransform] = {}
        for group in chooser.by_source(self.names):
            for names in ([name for name in group if (name in self.turned) is turned] for turned in (True, False)):
                if names and (one := self.transform(names[0], chooser, online=True)).macs:
                    found |= dict.fromkeys(names, one)
        return found

    def places(self, name: str) -> tuple[Place, Place]:
        """Where a layer's rotation and its factors are computed."""
        turned = self.rotated is not None and name in self.turned
        return (
            ("folded" if self.rotate else "online") if turned else "none",
            ("folded" if self.scale else "online") if self.smoothed else "none",
        )

    def told(self, name: str, chooser: Chooser, refused: Mapping[str, str]) -> LayerRotation:
        """One layer's report, but for what is computed online."""
        (rotation, factors), rotated = self.places(name), self.rotated
        folds = [fold for fold, place in ((self.rotate, rotation), (self.scale, factors)) if fold and place == "folded"]
        reasons = [self.because]
        if "online" in (rotation, factors):
            folds_any = chooser.recipe.rotation.fold
            otherwise = "no weights make its input alone" if folds_any else "the recipe folds nothing"
            reasons.append(f"not folded: {refused.get(name, otherwise)}")
        elif self.rotate and not self.scale and chooser.recipe.smoothing.method != "none":
            reasons.append("no factors: its rotation is folded, and they cannot be")
        return LayerRotation(
            name=name,
            rotation=rotation,
            factors=factors,
            block=len(rotated.blocks.first) if rotated is not None and rotation != "none" else 0,
            exponent=None if self.smoothed is None else self.smoothed.exponent,
            into=tuple(dict.fromkeys(owner for fold in folds for owner in fold.owners)),
            gain=self.gain,
            because="; ".join(reason for reason in reasons if reason),
        )


def _not_helpful(gain: float, least: float) -> str:
    if gain < 0:
        return f"rotating it would add {-100 * gain:.0f}% to its squared error"
    return f"rotating it takes away {100 * gain:.0f}% of its squared error, less than {100 * least:.0f}%"


def bundles(names: Sequence[str], folds: Iterable[Fold], chooser: Chooser) -> list[Bundle]:
    """Bundles of some layers, by the folds that reach them; of others those that read the same tensors are together."""
    by_layers: dict[tuple[str, ...], Bundle] = {}
    for fold in folds:
        own = tuple(name for name in names if name in fold.layers)
        taken = any(name in layers for layers in by_layers if layers != fold.layers for name in fold.layers)
        if not own or taken:
            continue
        common = any(one.bare for one in fold.rows)
        if common and not _do_as_well(own, chooser):
            continue
        bundle = by_layers.setdefault(fold.layers, Bundle(own, common=common))
        if fold.kind == "scale":
            bundle.scale = fold
        else:
            bundle.rotate = fold
    made = list(by_layers.values())
    reached = {name for bundle in made for name in bundle.names}
    rest = chooser.by_source([name for name in names if name not in reached])
    return [*made, *(Bundle(tuple(group)) for group in rest)]


def _do_as_well(names: tuple[str, ...], chooser: Chooser) -> bool:
    """Whether factors that layers of many inputs have in common leave nearly as little error as what would be computed
    for each input: the recipe's least gain says what is worth computing. No where it has all computed.
    """
    how = chooser.recipe.rotation
    if how.online == "all":
        return False
    apart = [Bundle(tuple(group)) for group in chooser.by_source(names)]
    lost = 0.0
    for bundle in apart:
        bundle.choose(chooser)
        lost += chooser.judge(bundle.names).error(bundle.transform(bundle.names[0], chooser))
    common = chooser.factors(names, 1)
    folded = InputTransform(chooser.width(names[0]), None if common is None else common.factors)
    return chooser.judge(names).error(folded) * (1 - how.least_gain) <= lost


def carry_out_(module: nn.Module, bundles: Sequence[Bundle], chooser: Chooser) -> dict[str, InputTransform]:
    """Does what all bundles chose to a float module, in place; what is computed online, by layer."""
    for bundle in bundles:
        bundle.fold_(module, chooser)
    online = {name: one for bundle in bundles for name, one in bundle.online(chooser).items()}
    attach_(module, online)
    return online
