"""optimum-quanto with int8 weights and activations, calibrated: a rival. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.rivals import AtOpening, Runner, Work, missing
from bench.rivals.torch_runner import TorchRunner

MOST_CALLS = 8
"""Calls that scales are calibrated on: moving averages, which more calls hardly move."""


@dataclass(frozen=True)
class QuantoInt8(AtOpening):
    """`quantize`, `Calibration`, `freeze`, at every opening from the float32 files."""

    name: str
    note: str

    def why_not(self) -> str | None:
        """Whether it is installed."""
        return missing("optimum.quanto", "optimum-quanto") if missing("optimum", "") is None else _ABSENT

    def open(self, work: Work) -> Runner:
        """The module, read, calibrated and frozen."""
        from optimum.quanto import Calibration, freeze, qint8, quantize

        module = work.load()
        quantize(module, weights=qint8, activations=qint8)
        runner, calls = TorchRunner(module), work.calls()
        with Calibration():
            for call in calls[:: max(1, len(calls) // MOST_CALLS)][:MOST_CALLS]:
                runner.run(call)
        freeze(module)
        return runner


_ABSENT = "not installed (no module optimum.quanto); pip install optimum-quanto"

INT8 = QuantoInt8("quanto-int8", "linears and convolutions, int8 weights and static int8 activations; eager")
