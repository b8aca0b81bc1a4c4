"""What was measured of a model before its recipe is tuned, and the search for the formats of least cost by it. Plain
numbers; must not know tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from quant.recipe import Storage
from quant.tuning.formats import FLOAT, WAYS, WIDTHS, Format, Way
from quant.tuning.search import Option, Point, cheapest, frontier

Objective = Literal["latency", "memory"]

ASIDE = 0.03
"""What is not the objective counts by this share of it: among choices that cost about the same, less of it wins."""

_STRICT = ConfigDict(extra="forbid", frozen=True)


class LayerCosts(BaseModel):
    """One layer: bytes and squared effect by bits of its weights, and bytes, effect and seconds of a row by way.

    `names` are those that rules know; `float_bytes` of its weight if it stays float.
    """

    model_config = _STRICT

    name: str
    float_bytes: int
    bytes: dict[int, int]
    effect: dict[int, float]
    way_bytes: dict[Way, int]
    way_effect: dict[Way, float]
    way_seconds: dict[Way, float]

    def option(self, form: Format) -> tuple[float, float, float]:
        """(bytes, seconds of a row, squared effect) of a format."""
        seconds = self.way_seconds[form.way]
        if form.bits is None:
            return self.float_bytes, seconds, 0.0
        size = self.bytes[form.bits] + self.way_bytes[form.way]
        return size, seconds, self.effect[form.bits] + self.way_effect[form.way]


class TableCosts(BaseModel):
    """A storage of tables of temporal features: bytes and squared effect of all together."""

    model_config = _STRICT

    storage: Storage
    bytes: int
    effect: float


class Offer(BaseModel):
    """A guidance plan that can be had: the share of a picture's multiply-adds that it saves, and its relative error."""

    model_config = _STRICT

    saving: float
    error: float


class Measured(BaseModel):
    """Everything.

    Attributes:
        layers: those that get a format.
        tables: storages of tables; empty where there are none.
        offers: guidance plans; none is always possible.
        other_bytes: of what has no choice, as stored.
        float_bytes: of all weights in float32.
        other_seconds: of a row, without what ways add.
        rows: of a picture, over all steps and branches.
        ways: that were measured.
    """

    model_config = _STRICT

    layers: tuple[LayerCosts, ...]
    tables: tuple[TableCosts, ...] = ()
    offers: tuple[Offer, ...] = ()
    other_bytes: int
    float_bytes: int
    other_seconds: float
    rows: int
    ways: tuple[Way, ...] = tuple(WAYS)


class Choice(NamedTuple):
    """A format for each layer, by name; how tables are stored; which plan; and what all that is expected to come to.

    `error` is the squared relative error of final latents, `seconds` of a picture's denoiser calls.
    """

    formats: Mapping[str, Format]
    storage: Storage | None
    offer: Offer | None
    bytes: float
    seconds: float
    error: float


class Search:
    """Choices by objective and budget."""

    def __init__(self, measured: Measured, objective: Objective) -> None:
        self._measured = measured
        self._forms = [*(Format(bits, way) for bits in WIDTHS for way in measured.ways), FLOAT]
        self._per_byte, self._per_second = _prices(measured, objective)
        self._problems: dict[float, tuple[list[list[Option]], list[Point]]] = {}

    def best(self, budget: float) -> Choice | None:
        """The choice of least cost whose expected squared error is at most the budget; None if there is none."""
        found = [self._with(offer, budget) for offer in (None, *self._measured.offers)]
        return min((one for one in found if one is not None), key=self.cost, default=None)

    def curve(self, points: int = 40) -> list[Choice]:
        """Choices from the coarsest to the finest."""
        ends = [point.error for point in self._ends()]
        low, high = max(min(ends), 1e-12), max(*ends, 1e-12)
        budgets = [high * (low / high) ** (place / max(1, points - 1)) for place in range(points)]
        return [one for budget in budgets if (one := self.best(1.001 * budget)) is not None]

    @property
    def least_error(self) -> float:
        """Squared error of the finest choice there is."""
        return min(point.error for point in self._ends())

    def _ends(self) -> list[Point]:
        _, points = self._problem(1.0)
        return [points[0], points[-1]]

    def cost(self, choice: Choice) -> float:
        """What the objective, and a little of what is not, is expected to be, as a share of all there is."""
        return self._per_byte * choice.bytes + self._per_second * choice.seconds

    def _with(self, offer: Offer | None, budget: float) -> Choice | None:
        share = 1.0 if offer is None else 1.0 - offer.saving
        spent = 0.0 if offer is None else offer.error**2
        items, points = self._problem(share)
        point = cheapest(items, budget - spent, points) if spent <= budget else None
        return None if point is None else self._choice(point, offer, share, spent)

    def _problem(self, share: float) -> tuple[list[list[Option]], list[Point]]:
        """What there is to choose from where a share of rows is run, and the frontier of that."""
        if share not in self._problems:
            items = self._items(share)
            self._problems[share] = (items, frontier(items))
        return self._problems[share]

    def _items(self, share: float) -> list[list[Option]]:
        """Options of each layer, then those of tables; a plan leaves a share of rows to be run."""
        rows = self._measured.rows * share
        items = [[self._option(layer.option(form), rows) for form in self._forms] for layer in self._measured.layers]
        if self._measured.tables:
            items.append([Option(self._per_byte * one.bytes, one.effect) for one in self._measured.tables])
        return items

    def _option(self, costs: tuple[float, float, float], rows: float) -> Option:
        size, seconds, effect = costs
        return Option(self._per_byte * size + self._per_second * seconds * rows, effect)

    def _choice(self, point: Point, offer: Offer | None, share: float, spent: float) -> Choice:
        measured, rows = self._measured, self._measured.rows * share
        chosen = {layer.name: self._forms[pick] for layer, pick in zip(measured.layers, point.picks, strict=False)}
        table = measured.tables[point.picks[-1]] if measured.tables else None
        costs = [layer.option(chosen[layer.name]) for layer in measured.layers]
        return Choice(
            chosen,
            None if table is None else table.storage,
            offer,
            measured.other_bytes + math.fsum(cost[0] for cost in costs) + (table.bytes if table else 0),
            rows * (measured.other_seconds + math.fsum(cost[1] for cost in costs)),
            point.error + spent,
        )


def _prices(measured: Measured, objective: Objective) -> tuple[float, float]:
    """What a byte and a second cost, in shares of all there are: the objective in full, the other one aside."""
    whole = measured.rows * (measured.other_seconds + math.fsum(max(_seconds(one)) for one in measured.layers))
    byte, second = 1.0 / max(1, measured.float_bytes), 1.0 / whole if whole > 0 else 0.0
    return (byte, ASIDE * second) if objective == "memory" else (ASIDE * byte, second)


def _seconds(layer: LayerCosts) -> Sequence[float]:
    return list(layer.way_seconds.values()) or [0.0]


def pooled(effects: Mapping[int, float], local: Mapping[int, float]) -> dict[int, float]:
    """Effects by bits with less scatter: what rounding does to a weight, known exactly, times what all widths together
    say that this does to a picture. Each width's own estimate is a mean over few pictures.
    """
    ratios = [effects[bits] / local[bits] for bits in effects if local[bits] > 0]
    factor = math.fsum(ratios) / max(1, len(ratios))
    return {bits: factor * local[bits] for bits in effects}


def shares(weights: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Each name's share of the sum; equal ones where all is zero."""
    total = math.fsum(weights.values())
    for name, weight in weights.items():
        yield name, weight / total if total > 0 else 1.0 / len(weights)
