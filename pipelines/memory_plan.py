"""How much memory a denoiser's weights take, by part and number format, with and without tables in time's place.

From shapes alone. Every linear and convolution is counted at the format's bits, with a scale for each output channel;
biases, norms, embeddings and buffers stay float32 beside integers, as backends hold them. A recipe keeps a few layers
float, so an artifact is a little larger. Must not know folders or how anything is printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from pipelines.structure import structure_of
from quant.recipe import Storage
from quant.temporal.discover import Discovery

Part = Literal["temporal", "linear", "conv", "embedding", "other"]
Format = Literal["float32", "float16", "w8", "w4"]
FORMATS: tuple[Format, ...] = get_args(Format)
PARTS: tuple[Part, ...] = get_args(Part)

BITS: Mapping[Format, int] = {"float32": 32, "float16": 16, "w8": 8, "w4": 4}
STEPS = 50
"""Steps of a schedule, where nobody says."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One part's memory: numbers of parameters, and bytes by format."""

    name: str
    parameters: int
    bytes: dict[Format, int]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A denoiser's memory.

    Attributes:
        kind: its class.
        parameters: of all parts.
        parts: temporal modules, all other linears, convolutions, embeddings, and the rest (norms, single parameters,
            buffers).
        total: bytes without tables, by format.
        steps: slots of the tables; `storage` is theirs.
        table_bytes: of the tables, for one value of the request's constants; of class E2, for one request and branch.
        freed: bytes of weights that tables replace for good (E0, E1), by format.
        per_request: bytes of weights that each request needs once, before its first step (E2 and what feeds it), by
            format. `resident` has them in memory, `lean` only while the tables of a request are made.
        resident: bytes with tables in the place of freed weights, by format.
        lean: bytes with tables in the place of all temporal weights.
        unknown: why nothing is held for temporal, where the data flow could not be followed; else empty.
    """

    kind: str
    parameters: int
    parts: tuple[PartPlan, ...]
    total: dict[Format, int]
    steps: int
    storage: str
    table_bytes: int
    freed: dict[Format, int]
    per_request: dict[Format, int]
    resident: dict[Format, int]
    lean: dict[Format, int]
    unknown: str


@dataclass(slots=True)
class _Count:
    """Numbers of one part: in weights that may be quantized, their output channels, and all others by bytes."""

    weights: int = 0
    channels: int = 0
    rest: int = 0
    buffers: int = 0

    @property
    def parameters(self) -> int:
        return self.weights + self.rest

    def bytes(self, form: Format) -> int:
        bits = BITS[form]
        if bits >= 16:
            return (self.parameters * bits) // 8 + self.buffers
        return -(-self.weights * bits // 8) + 4 * (self.channels + self.rest) + self.buffers


def plan_memory(module: nn.Module, found: Discovery, *, steps: int = STEPS, storage: Storage = "float32") -> MemoryPlan:
    """The memory of a denoiser, by the shapes of its tensors (fake ones do) and what is known of its temporal leaves.

    Args:
        module: the denoiser.
        found: its temporal leaves.
        steps: slots of the tables.
        storage: of the tables.

    Raises:
        ValueError: there is no step.
    """
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, not {steps}")
    temporal = {leaf.name for leaf in found.leaves}
    counts = {name: _Count() for name in PARTS}
    freed, hoisted = _Count(), _Count()
    for name, layer, parameters in _owners(module):
        part: Part = "temporal" if name in temporal else _part(layer)
        _add(counts[part], layer, parameters)
        if name in temporal:
            _add(hoisted if name in found.per_request else freed, layer, parameters)
    tables = steps * structure_of(module, found).table[storage]
    total = {form: sum(count.bytes(form) for count in counts.values()) for form in FORMATS}
    gone, once = ({form: count.bytes(form) for form in FORMATS} for count in (freed, hoisted))
    resident = {form: total[form] - gone[form] + tables for form in FORMATS}
    return MemoryPlan(
        kind=type(module).__name__,
        parameters=sum(count.parameters for count in counts.values()),
        parts=tuple(
            PartPlan(name, count.parameters, {form: count.bytes(form) for form in FORMATS})
            for name, count in counts.items()
        ),
        total=total,
        steps=steps,
        storage=storage,
        table_bytes=tables,
        freed=gone,
        per_request=once,
        resident=resident,
        lean={form: resident[form] - once[form] for form in FORMATS},
        unknown=found.unknown,
    )


def _owners(module: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Tensor]]]:
    """Every module that owns tensors: (name, it, its parameters by name); what is tied counts where it comes first."""
    seen: set[int] = set()
    for name, layer in module.named_modules():
        own = {key: one for key, one in layer.named_parameters(recurse=False) if id(one) not in seen}
        seen |= {id(one) for one in own.values()}
        if own or any(True for _ in layer.buffers(recurse=False)):
            yield name, layer, own


def _part(layer: nn.Module) -> Part:
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, _CONVOLUTIONS):
        return "conv"
    return "embedding" if isinstance(layer, nn.Embedding) else "other"


def _add(count: _Count, layer: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if name == "weight" and _part(layer) in ("linear", "conv"):
            count.weights += parameter.numel()
            count.channels += parameter.shape[0]
        else:
            count.rest += parameter.numel()
    count.buffers += sum(buffer.nbytes for buffer in layer.buffers(recurse=False))
