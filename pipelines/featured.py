"""A denoiser that answers with its temporal features: what its layers of time put out, row by row, side by side.

Runs a profile's layers as torch modules, whatever backend serves them. Must not know what features are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import quant
from jobs.profile import FLOAT, ProfileCard
from pipelines.batch import take_rows
from pipelines.denoiser import COND, DenoiserCall, module_bytes
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_denoiser
from pipelines.quantized import open_reference
from quant.recipe_parts import FloatIn


class StepKeeper:
    """Keeps a row of the first call at each timestep: the conditional one where both branches are there."""

    def __init__(self) -> None:
        self.calls: dict[float, DenoiserCall] = {}

    def watch(self, call: DenoiserCall) -> None:
        """Sees a call."""
        found = (call.branch == COND).nonzero()
        row = int(found[0]) if len(found) else 0
        time = float(call.timestep[row].max())  # a few models have one for each token
        if time not in self.calls:
            self.calls[time] = take_rows(call, torch.tensor([row]))


class Featured:
    """A `Denoiser` whose output [B, F] is the concatenation of what modules put out for each row.

    Attributes:
        widths: of each module's output, once a call has run; their sum is F.
    """

    backend = "reference"
    fallbacks = 0
    guidance = None
    precision = None
    decode_in: FloatIn = "float32"

    def __init__(
        self, name: str, module: nn.Module, names: Sequence[str] = (), source: quant.FeatureSource | None = None
    ) -> None:
        self.name = name
        self.weights_bytes = module_bytes(module)
        self.widths: tuple[int, ...] = ()
        self._module = module
        self._names = names
        self._source = source

    def of(self, names: Sequence[str]) -> Featured:
        """The same, for modules of these names."""
        return Featured(self.name, self._module, names, self._source)

    def run(self, call: DenoiserCall) -> Tensor:
        """[B, F] float32, on the CPU.

        Raises:
            QuantError: the profile cannot tell the moment of the call.
        """
        return torch.stack([self._row(row) for row in _rows(type(self._module), call)])

    def by_name(self, rows: Tensor) -> dict[str, Tensor]:
        """What `run` gave, [B, F], as each module's part of it, [B, width]."""
        return dict(zip(self._names, torch.split(rows, list(self.widths), dim=1), strict=True))

    def _row(self, row: quant.Call) -> Tensor:
        found = quant.features_of(self._module, self._names, [row], self._source)
        self.widths = tuple(found[name].shape[1] for name in self._names)
        return torch.cat([found[name][0] for name in self._names])


def frontier(module: nn.Module, call: DenoiserCall) -> list[str]:
    """Names of the modules whose outputs depend on the step alone, once the request is given; empty where none do."""
    leaves = quant.examine(module, _rows(type(module), call)[0]).leaves
    return [leaf.name for leaf in leaves if leaf.frontier]


def open_featured(card: ProfileCard, components: Components) -> Featured:
    """A profile opened for its features; it takes about as much memory as the float model.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model.
    """
    if card.name == FLOAT:
        return Featured(FLOAT, load_denoiser(components))
    module, source = open_reference(card, components)
    return Featured(card.name, module, source=source)


def _rows(kind: type[nn.Module], call: DenoiserCall) -> list[quant.Call]:
    """A call's rows, each as a call of the library's."""
    parts = library_calls(kind, call)
    return [plain(part.take(torch.tensor([row]))) for part in parts for row in range(part.count)]
